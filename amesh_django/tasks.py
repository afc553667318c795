"""The tasks of Celery. For a hub (docs/fleet.md): ``amesh.deliver`` brings one server up to date, ``amesh.sweep`` finds what was missed.

Nothing waits in the broker: a task that is lost, late, or doubled does no harm. Without Celery, ``manage.py amesh_propagate --watch`` does the same.

``amesh.pair`` runs a pairing that a person began in the admin (``AMESH["PAIRING_TASK"]``). The broker gets its number, and no code or key.
"""

from __future__ import annotations

try:
    from celery import current_app, shared_task
except ModuleNotFoundError:
    raise ImportError(
        "amesh_django.tasks needs Celery, which is not installed. Run: pip install 'amesh-django[celery]'"
    ) from None

from .fleet import delivery, sweeping
from .pairing import hosting

__all__ = ["deliver", "pair", "sweep"]

#: Seconds after which a task that no worker has begun is dropped: the sweeper has rung again by then.
EXPIRES_SECONDS = 60

#: Seconds within which the sweeper leaves a change to the ring of the process that made it.
PATIENCE_SECONDS = 1.0

#: Seconds after which a pairing that no worker has begun is dropped: its page says that no process has begun it.
PAIR_SECONDS = 15


@shared_task(name="amesh.deliver", ignore_result=True)
def deliver(pk: int) -> None:
    """Send a server what it lacks.

    Args:
        pk: primary key of its row.
    """
    delivery.deliver(pk)


@shared_task(name="amesh.sweep", ignore_result=True)
def sweep() -> None:
    """Ring each server that lacks something. Celery beat runs it every second."""
    sweeping.sweep(ring=ring, patience=PATIENCE_SECONDS)


@shared_task(name="amesh.pair", ignore_result=True, acks_late=False)
def pair(pk: int) -> None:
    """Run the ceremony of a pairing to its end, which may take some minutes.

    Args:
        pk: primary key of its row.
    """
    hosting.run(pk)


def send_pairing(pk: int) -> None:
    """Ask a worker to run a pairing. May raise.

    Args:
        pk: primary key of its row.
    """
    if is_eager():
        hosting.start_here(pk)
        return
    pair.apply_async((pk,), retry=False, expires=PAIR_SECONDS, ignore_result=True)


def ring(pk: int) -> None:
    """Ask a worker to deliver. May raise, and may block: the broker may be down, or hang.

    Args:
        pk: primary key of the row of a server.
    """
    if is_configured():
        deliver.apply_async((pk,), retry=False, expires=EXPIRES_SECONDS, ignore_result=True)


def is_configured() -> bool:
    """Return True if the project has an app of Celery. Without one, there is only the one that Celery makes for itself."""
    return current_app.main != "default" or current_app.conf.broker_url is not None


def queue_problem() -> str:
    """Return the name of the queue of ``amesh.deliver`` if other tasks go to it, too, or an empty text."""
    queue = _queue_of(deliver.name)
    return queue if queue == _queue_of("another.task") else ""


def shares_queue() -> bool:
    """Return True if a pairing, which takes minutes, waits in the same queue as the deliveries."""
    return _queue_of(pair.name) == _queue_of(deliver.name)


def is_eager() -> bool:
    """Return True if tasks run where they are sent."""
    return bool(current_app.conf.task_always_eager)


def _queue_of(name: str) -> str:
    found = current_app.amqp.router.route({}, name)["queue"]
    return str(getattr(found, "name", found))
