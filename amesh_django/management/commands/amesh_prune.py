"""``manage.py amesh_prune``."""

from amesh_django.management.base import AmeshCommand
from amesh_django.management.grants import PRUNE


class Command(AmeshCommand):
    spec = PRUNE
