"""The documents are true: what they show is run, what they name exists, and their links lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import services
from tests.documents import Stage, blocks
from tests.services import ROOT


def new_project(stage: Stage) -> None:
    stage.execute("server", "django-admin startproject mysite .")


def test_the_readme(tmp_path: Path) -> None:
    with Stage(tmp_path) as stage:
        new_project(stage)
        for block in blocks(ROOT / "README.md"):
            stage.play(block)


def test_the_integration_guide(tmp_path: Path, redis: services.Redis) -> None:
    with Stage(tmp_path, {"6379": redis.port}) as stage:
        new_project(stage)
        stage.execute("desk", "django-admin startproject mysite .")
        for block in blocks(ROOT / "docs" / "guide.md"):
            if block.section.startswith(("1.", "2.", "3.", "4.", "5.")):
                stage.play(block)
        for block in blocks(ROOT / "docs" / "integration.md"):
            stage.play(block)


def test_the_guide(tmp_path: Path, redis: services.Redis) -> None:
    with Stage(tmp_path, {"6379": redis.port}) as stage:
        new_project(stage)
        for block in blocks(ROOT / "docs" / "guide.md"):
            stage.play(block)
