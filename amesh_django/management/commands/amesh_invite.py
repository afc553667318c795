"""``manage.py amesh_invite``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.pairing.invite import INVITE


class Command(AmeshCommand):
    spec = INVITE
