"""The types that a project outside this repository sees: mypy, strict, over every example of the documentation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from amesh_django.conf import AmeshDict, AmeshSettings
from tests.support.documents import DOCUMENTS, blocks
from tests.support.services import ROOT

PROJECT = Path(__file__).with_name("typed") / "mysite"
#: As the documentation of django-stubs and djangorestframework-stubs says. The examples have no annotations, so that a reader finds
#: the point; what they use is checked all the same.
CONFIG = """
[mypy]
strict = true
warn_unreachable = true
plugins = mypy_django_plugin.main, mypy_drf_plugin.main

[mypy.plugins.django-stubs]
django_settings_module = mysite.settings

[mypy-examples.*]
disallow_untyped_defs = false
disallow_incomplete_defs = false
disallow_untyped_calls = false
disallow_any_generics = false

[mypy-amesh_django.*,authmesh.*]
follow_imports = silent
"""
#: Stands before an example that adds to the settings.
SETTINGS = "from mysite.settings import *\n"


def write_examples(folder: Path) -> set[str]:
    """Write each Python example of the documents as a module, and return what the examples import from our packages."""
    folder.mkdir()
    (folder / "__init__.py").touch()
    imported = set()
    for document in DOCUMENTS:
        for block in blocks(document):
            if block.language == "python":
                name = f"{document.stem.lower()}_{block.line}"
                (folder / f"{name}.py").write_text((SETTINGS if block.kind in ("add", "settings") else "") + block.text)
                imported |= imports(block.text)
    return imported


def imports(text: str) -> set[str]:
    """Return the names that a text imports from our packages."""
    found = re.findall(r"^ *from ((?:amesh_django|authmesh)[\w.]*) import (?:\(([^)]*)\)|(.*))", text, re.MULTILINE)
    return {
        f"{module}.{name.strip()}"
        for module, several, one in found
        for name in (several or one.partition("#")[0]).split(",")
        if name.strip()
    }


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.unversioned
def test_the_examples_are_typed_for_a_project_of_its_own(tmp_path: Path) -> None:
    shutil.copytree(PROJECT, tmp_path / "mysite")
    used = write_examples(tmp_path / "examples")
    typed = set().union(*(imports(path.read_text()) for path in PROJECT.glob("*.py")))
    assert used <= typed, f"use these in tests/docs/typed/mysite, with annotations: {sorted(used - typed)}"
    (tmp_path / "mypy.ini").write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--no-pretty", "mysite", "examples"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": f"{ROOT}:{ROOT / 'cli'}", "PYTHONPATH": f"{tmp_path}:{ROOT}:{ROOT / 'cli'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    found = re.findall(r"^(\S+):(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    mistakes = enumerate((PROJECT / "mistakes.py").read_text().splitlines(), 1)
    expected = [
        ("mysite/mistakes.py", str(number), line.split("# error: ")[1])
        for number, line in mistakes
        if "# error: " in line
    ]
    assert sorted(found) == sorted(expected), done.stdout


def test_the_type_of_the_settings_has_every_setting() -> None:
    """``DIR`` and the like may be a Path; everything else has the type of the setting."""
    types = get_type_hints(AmeshSettings)
    for name in ("DIR", "SEAL_KEY_FILE"):
        types[name] |= os.PathLike[str]
    assert get_type_hints(AmeshDict) == types
