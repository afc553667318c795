"""``manage.py amesh_revoke``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.devices import REVOKE


class Command(AmeshCommand):
    spec = REVOKE
