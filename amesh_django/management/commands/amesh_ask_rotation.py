"""``manage.py amesh_ask_rotation``."""

from amesh_django.management.base import AmeshCommand
from amesh_django.management.notes import ASK_ROTATION


class Command(AmeshCommand):
    spec = ASK_ROTATION
