"""``manage.py amesh_show``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.granting import SHOW


class Command(AmeshCommand):
    spec = SHOW
