"""``manage.py amesh_fetch``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.requests import FETCH


class Command(AmeshCommand):
    spec = FETCH
