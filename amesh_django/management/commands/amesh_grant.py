"""``manage.py amesh_grant``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.devices import GRANT


class Command(AmeshCommand):
    spec = GRANT
