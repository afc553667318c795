"""SECOND: what ``manage.py amesh_*`` is made of."""
