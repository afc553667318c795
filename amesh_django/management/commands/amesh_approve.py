"""``manage.py amesh_approve``."""

from amesh_django.management.base import AmeshCommand
from amesh_django.management.standing import APPROVE


class Command(AmeshCommand):
    spec = APPROVE
