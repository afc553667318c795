"""``manage.py amesh_provision``."""

from amesh_django.management.pairing import PairingCommand
from authmesh.commands.tokens.provision import PROVISION


class Command(PairingCommand):
    spec = PROVISION
