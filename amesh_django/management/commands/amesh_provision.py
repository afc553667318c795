"""``manage.py amesh_provision``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.tokens.provision import PROVISION


class Command(AmeshCommand):
    spec = PROVISION
