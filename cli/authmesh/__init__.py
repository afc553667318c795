"""The ``amesh`` command, for machines without a Django project."""
