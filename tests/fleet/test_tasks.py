"""The tasks of Celery: their names and arguments, and a process that has not loaded Celery."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from celery import Celery

from amesh_django import apps, tasks
from amesh_django.fleet import delivery, sweeping


def test_the_tasks_have_stable_names_and_one_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(delivery, "deliver", done.append)
    monkeypatch.setattr(sweeping, "sweep", lambda *, ring, patience: done.append(ring))
    assert (tasks.deliver.name, tasks.sweep.name) == ("amesh.deliver", "amesh.sweep")
    tasks.deliver(7)
    tasks.sweep()
    assert done == [7, tasks.ring]


def test_a_ring_is_never_tried_again_and_does_not_outlive_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(tasks.deliver, "apply_async", lambda *args, **options: sent.append((args, options)))
    apps._ring(7)  # with the application that Celery makes for itself
    assert not sent
    monkeypatch.setattr(tasks, "current_app", Celery("mysite", set_as_current=False))
    apps._ring(7)
    assert sent == [(((7,),), {"retry": False, "expires": 60, "ignore_result": True})]
    monkeypatch.delitem(sys.modules, "celery")  # the project has not loaded it
    apps._ring(7)
    assert len(sent) == 1
