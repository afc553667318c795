"""``manage.py amesh_group``."""

from amesh_django.management.base import AmeshCommand
from amesh_django.management.grants import GROUP


class Command(AmeshCommand):
    spec = GROUP
