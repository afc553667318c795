"""The script that tries both implementations together: what it does itself, with this one on every side."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.interop.interop import OURS, THEIRS, Machine, combination, nothing_stored
from tests.support.services import ROOT

pytestmark = pytest.mark.unversioned


@pytest.mark.process
@pytest.mark.slow
def test_it_pairs_at_two_terminals_over_a_relay() -> None:
    amesh = [sys.executable, "-m", "authmesh"]
    combination((OURS, OURS, OURS), {OURS: amesh, THEIRS: amesh}, [])


@pytest.mark.parametrize("side", ["target", "controller"])
def test_it_looks_at_both_sides_after_a_wrong_code(side: str, tmp_path: Path) -> None:
    machines = [Machine(OURS, [], tmp_path / name) for name in ("target", "controller")]
    for machine in machines:
        machine.path.mkdir()
    nothing_stored(*machines)
    entry = {"deviceId": "am_x", "role": "target"}
    (tmp_path / side / "allow_list.json").write_text(json.dumps({"devices": [entry]}))
    with pytest.raises(AssertionError, match=side):
        nothing_stored(*machines)


def test_every_request_of_the_scripts_bears_a_slow_machine() -> None:
    """The other implementation computes Argon2id in JavaScript, before the first answer of each server."""
    for name in ("interop.py", "interop_sdk.py"):
        text = (ROOT / "tests" / "interop" / name).read_text("utf-8")
        requests = re.findall(r"(?:httpx\.(?:Client|get)|by_requests\.request)\(.*", text)
        assert requests
        assert [line for line in requests if "timeout=SECONDS" not in line] == []


@pytest.mark.parametrize("page", ["docs/compatibility.md", "tests/interop/interop.py", "tests/interop/interop_sdk.py"])
def test_the_command_of_the_other_command_line_is_whole(page: str) -> None:
    """Without its version, which its build sets, the TypeScript command line ends at once."""
    text = (ROOT / page).read_text("utf-8").replace(r"\\", "\\")
    lines = [line.strip() for line in text.splitlines() if "sea.ts" in line]
    assert lines
    for line in lines:
        _, quoted = shlex.split(line)
        assert shlex.split(quoted) == ["bun", "--define", '__VERSION__="0.7.0"', "packages/cli/src/sea.ts"]
