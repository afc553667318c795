"""``manage.py amesh_rename``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.granting import RENAME


class Command(AmeshCommand):
    spec = RENAME
