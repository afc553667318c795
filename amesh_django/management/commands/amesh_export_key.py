"""``manage.py amesh_export_key``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.identity import EXPORT_KEY


class Command(AmeshCommand):
    spec = EXPORT_KEY
