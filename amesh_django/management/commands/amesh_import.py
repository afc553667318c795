"""``manage.py amesh_import``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.transfer import IMPORT


class Command(AmeshCommand):
    spec = IMPORT
