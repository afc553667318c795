"""``manage.py amesh_note``."""

from amesh_django.management.base import AmeshCommand
from amesh_django.management.notes import NOTE


class Command(AmeshCommand):
    spec = NOTE
