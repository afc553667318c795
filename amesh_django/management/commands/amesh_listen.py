"""``manage.py amesh_listen``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.pairing.listen import LISTEN


class Command(AmeshCommand):
    spec = LISTEN
