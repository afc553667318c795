"""``manage.py amesh_deny``."""

from amesh_django.management.base import AmeshCommand
from amesh_django.management.standing import DENY


class Command(AmeshCommand):
    spec = DENY
