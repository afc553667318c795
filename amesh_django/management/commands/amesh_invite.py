"""``manage.py amesh_invite``."""

from amesh_django.management.pairing import PairingCommand
from authmesh.commands.pairing.invite import INVITE


class Command(PairingCommand):
    spec = INVITE
