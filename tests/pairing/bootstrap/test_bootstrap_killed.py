"""Killed at every step of enrollment: the device has no identity or a complete one, and the next attempt always succeeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import databases, services

pytestmark = [
    pytest.mark.process,
    pytest.mark.long,
    pytest.mark.unversioned,
]  # no version changes the order of the steps


@pytest.mark.parametrize("kind", ["file", "database"])
def test_killed_at_every_step(tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    env: dict[str, str] = {}
    words = [sys.executable, "-m", "tests.pairing.bootstrap.bootstrap_killed", str(tmp_path / "killed")]
    (tmp_path / "killed").mkdir()
    if kind == "database":
        env = databases.environment(request.getfixturevalue("sqlite_database"))
        words.append("django")
    printed = services.run(words, env={**env, "PYTHONWARNINGS": "default", "AMESH_BOOTSTRAP_TOKEN": ""})
    told: dict[str, Any] = json.loads(printed.splitlines()[-1])
    found = told["found"]
    killed = [case for case in found if case["ended"] == 9]
    assert [case["ended"] for case in found if case["ended"] != 9] == [0, 0]  # the last attempt of each round succeeds
    assert len(killed) > 30
    acknowledged = complete = 0
    for case in found:
        left, after = case["left"], case["after"]
        if left["identity"]:  # then it must be complete
            complete += 1
            assert left["controllers"] == [told["controller"]], case
        else:
            assert case["then"] == 0, case
        if left["acknowledged"] and not left["identity"]:  # the acknowledged key must not be lost
            acknowledged += 1
            assert after["id"] == left["staged"], case
        assert after["identity"] and after["controllers"] == [told["controller"]], case
        expected = [".passphrase", "identity.json", f"keys/{after['id']}.key.json"]
        expected += ["allow_list.json"] if kind == "file" else []
        assert set(expected) <= set(after["files"]), case
        extra = set(after["files"]) - set(expected) - {"list_revision.json"}
        # A staging folder that is left after identity.json was moved contains no key.
        assert all(name.startswith(".bootstrap/") and "key" not in name for name in extra), case
    assert acknowledged > 8 and complete >= 2
