"""``manage.py amesh_header``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.requests import HEADER


class Command(AmeshCommand):
    spec = HEADER
