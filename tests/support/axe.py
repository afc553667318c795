"""axe-core, which finds what keeps people out of a page. It comes from npm, once."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from tests.support.services import ROOT

VERSION = "4.14.1"
#: The rules: those of WCAG 2.2, levels A and AA.
TAGS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
#: JavaScript: the rules that the page breaks, each with an element that does.
CHECK = """async tags => {
  const found = await axe.run(document, {runOnly: tags, resultTypes: ['violations']});
  return found.violations.flatMap(one => one.nodes.map(node => `${one.id}: ${node.html.slice(0, 200)}`));
}"""


def source() -> str:
    """Return the program as text. Skips the test without npm."""
    folder = ROOT / ".axe"
    path = folder / "node_modules" / "axe-core" / "axe.min.js"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not path.exists() or not _is_right(path):
            if shutil.which("npm") is None:
                pytest.skip("npm is missing: on Debian, install npm.")
            flags = ["--no-save", "--no-package-lock", "--no-audit", "--no-fund"]
            done = subprocess.run(
                ["npm", "install", *flags, "--prefix", str(folder), f"axe-core@{VERSION}"],
                cwd=folder, capture_output=True, text=True, timeout=120,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    return path.read_text("utf-8")


def _is_right(path: Path) -> bool:
    return f'"version": "{VERSION}"' in (path.parent / "package.json").read_text("utf-8")
