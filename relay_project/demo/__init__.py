"""The main job, shown for real: a device signs, this server verifies, a person revokes. ``manage.py amesh_demo``."""
