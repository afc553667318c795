"""The project that ships with the package: the admin, a small protected API, the relay, and the demo."""

import os

# Every process that changes the list rings the worker, so it must know the broker. Without one, Celery need not be installed.
if os.environ.get("CELERY_BROKER_URL"):
    from .celery import app as celery

    __all__ = ["celery"]
