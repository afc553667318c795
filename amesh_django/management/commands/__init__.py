"""SECOND: the commands of ``manage.py``. What they do and say is in ``amesh_django.device.commands``."""
