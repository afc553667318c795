"""``manage.py amesh_map``."""

from amesh_django.management.base import AmeshCommand
from amesh_django.management.grants import MAP


class Command(AmeshCommand):
    spec = MAP
