"""``manage.py amesh_export``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.transfer import EXPORT


class Command(AmeshCommand):
    spec = EXPORT
