"""``manage.py amesh_lift``."""

from amesh_django.management.base import AmeshCommand
from amesh_django.management.standing import LIFT


class Command(AmeshCommand):
    spec = LIFT
