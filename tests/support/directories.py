"""Device directories for the tests: created, read, given to another user, and made by the reference."""

from __future__ import annotations

import datetime as dt
import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amesh_django.test import EphemeralDevice
from amesh_django.test.devices import PASSPHRASE
from authmesh.device import Identity, init_device
from authmesh.files.storage import json_text
from authmesh.protocol import b64decode, b64encode, device_id
from tests.support.services import ROOT

VECTORS = ROOT / "tests/protocol/vectors"
NOW = dt.datetime(2026, 3, 28, 10, 5, tzinfo=dt.UTC)
NOBODY = 65534
#: An environment that disables the TPM of this machine and has nothing else.
NO_TPM = {"AMESH_TPM_TCTI": "none"}

KEY_FILES = [case for case in json.loads((VECTORS / "keyfile.json").read_text("utf-8"))["cases"] if case["tag"] == "ok"]


def make(path: Path, **options: Any) -> Identity:
    environ = {**NO_TPM, **options.pop("environ", {})}
    return init_device(path, "laptop", **{"now": NOW, "environ": environ, **options})


def contents(path: Path) -> dict[str, bytes]:
    """Return every file in a folder except for the lock."""
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file() and p.name != ".lock"}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def python(code: str, *, unprivileged: bool = False) -> str:
    """Return the output of Python code in a separate process, on request without the privileges of root."""
    drop = f"if os.geteuid() == 0: os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    head = (
        "import os, datetime as dt; from pathlib import Path\n"
        "from authmesh.device import *; from authmesh.protocol import *; from authmesh.files import storage\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + (drop if unprivileged else "") + code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def folder_of_nobody() -> Iterator[Path]:
    """Yield an empty folder of the unprivileged user of :func:`python`, who cannot access the folders of pytest."""
    with tempfile.TemporaryDirectory(prefix="amesh-") as name:
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        yield Path(name)


def give_to_nobody(folder: Path) -> None:
    """Make the unprivileged user the owner of everything in a folder."""
    for place in folder.rglob("*") if os.geteuid() == 0 else ():
        os.chown(place, NOBODY, NOBODY)


def legacy(path: Path, passphrase: Any = PASSPHRASE) -> EphemeralDevice:
    """Create a directory like versions without a passphrase file."""
    device = EphemeralDevice("old")
    device.write(path)
    (path / ".passphrase").unlink()
    (path / "identity.json").write_text(json_text({**device.identity.to_json(), "passphrase": passphrase, "z": 1}))
    return device


def reference_directory(path: Path, case: dict[str, Any], **members: Any) -> bytes:
    """Create a directory from a key file of the vectors. Return the public key."""
    public_key = b64decode(case["expected"]["derived_public_key_b64"])
    identity = {
        "version": "2.0.0",
        "deviceId": members.pop("deviceId", None) or device_id(public_key),
        "keyAlias": case["device_id"],
        "publicKey": b64encode(public_key),
        "friendlyName": "Réference",
        "createdAt": "2026-03-28T10:05:00.000Z",
        "storageBackend": "encrypted-file",
        **members,
    }
    (path / "keys").mkdir(parents=True, mode=0o700)
    path.chmod(0o700)
    for name, text in {
        "identity.json": json.dumps({k: v for k, v in identity.items() if v is not None}, indent=2, ensure_ascii=False),
        ".passphrase": case["passphrase"],
        f"keys/{case['device_id']}.key.json": case["file"],
    }.items():
        (path / name).write_text(text, "utf-8")
        (path / name).chmod(0o600)
    return public_key
