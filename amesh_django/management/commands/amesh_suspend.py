"""``manage.py amesh_suspend``."""

from amesh_django.management.base import AmeshCommand
from amesh_django.management.standing import SUSPEND


class Command(AmeshCommand):
    spec = SUSPEND
