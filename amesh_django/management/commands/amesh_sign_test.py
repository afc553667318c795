"""``manage.py amesh_sign_test``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.identity import SIGN_TEST


class Command(AmeshCommand):
    spec = SIGN_TEST
