"""``manage.py amesh_listen``."""

from amesh_django.management.pairing import PairingCommand
from authmesh.commands.pairing.listen import LISTEN


class Command(PairingCommand):
    spec = LISTEN
