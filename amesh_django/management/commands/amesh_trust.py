"""``manage.py amesh_trust``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.trust import TRUST


class Command(AmeshCommand):
    spec = TRUST
