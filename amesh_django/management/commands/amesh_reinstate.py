"""``manage.py amesh_reinstate``."""

from amesh_django.management.base import AmeshCommand
from amesh_django.management.standing import REINSTATE


class Command(AmeshCommand):
    spec = REINSTATE
