"""``manage.py amesh_list``."""

from amesh_django.management.base import AmeshCommand
from authmesh.commands.devices import LIST


class Command(AmeshCommand):
    spec = LIST
