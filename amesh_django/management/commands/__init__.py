"""SECOND: the commands of ``manage.py``. What they do and say is in ``authmesh.commands``."""
