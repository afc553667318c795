"""``manage.py amesh_purge``."""

from amesh_django.management.base import AmeshCommand
from amesh_django.management.grants import PURGE


class Command(AmeshCommand):
    spec = PURGE
