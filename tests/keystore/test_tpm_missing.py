"""Machines without a usable TPM: each reason has its own message and hint, for `init` and for an existing identity."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from authmesh import keystore
from authmesh.device import LocalDevice
from authmesh.keystore.tpm.place import has_manager, takes_many, tcti_name
from authmesh.keystore.tpm.store import TpmKeyStore, unavailable
from authmesh.protocol.errors import BackendUnavailable, KeyStoreError
from tests.keystore.tpms import Swtpm, forget, running_swtpm
from tests.support.directories import NOBODY, folder_of_nobody, give_to_nobody, make
from tests.support.services import ROOT, free_port

pytestmark = pytest.mark.process

AMESH = [sys.executable, "-m", "authmesh"]

#: Reason → the value of AMESH_TPM_TCTI, and the text of the error.
REASONS = {
    "no device": ("device:/dev/no-tpm", r"No TPM 2\.0 was found: /dev/no-tpm is missing\. .*firmware.*AMESH_TPM_TCTI"),
    "a folder": ("device:/dev", r"/dev is a folder, not a TPM\. Correct AMESH_TPM_TCTI"),
    "not wanted": ("none", r"AMESH_TPM_TCTI is set to none, .*Unset AMESH_TPM_TCTI to use the TPM of this machine"),
    "no module": ("nosuch:x=1", r"no TSS module for 'nosuch'\. Install it \(apt-get install libtss2-tcti-nosuch0\)"),
    "a path": ("/dev/tpmrm0", r"AMESH_TPM_TCTI is set to '/dev/tpmrm0', .*Use device:/dev/tpmrm0"),
    "no answer": ("swtpm:port=1", r"TPM \(swtpm:port=1\) does not respond .*\. Start it, .*correct AMESH_TPM_TCTI"),
    "no tpm": ("device:/dev/null", r"TPM \(device:/dev/null\) does not respond"),
}


@pytest.fixture(scope="module")
def swtpm() -> Iterator[Swtpm]:
    with running_swtpm() as found:
        yield found


def process(code: str, *, stub: Path | None = None, environ: dict[str, str] | None = None) -> str:
    """Return the output of Python code in a separate process, with a folder in front of the path."""
    paths = [str(path) for path in (stub, ROOT) if path]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(environ or {})},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("tcti", "sentence"), REASONS.values(), ids=REASONS)
def test_each_reason_has_its_sentence(tcti: str, sentence: str) -> None:
    found = str(unavailable(tcti))
    assert re.search(sentence, found)
    tried: list[tuple[str, str]] = []
    chosen = keystore.choose(
        report=lambda name, problem: tried.append((name, str(problem))), environ={"AMESH_TPM_TCTI": tcti}
    )
    assert ("tpm2", found) in tried
    assert chosen == tried[-1][0] == "encrypted-file" or sys.platform == "darwin"
    with pytest.raises(BackendUnavailable, match=re.escape(found)):
        keystore.choose("tpm2", environ={"AMESH_TPM_TCTI": tcti})
    forget(tcti)


@pytest.mark.parametrize(("tcti", "sentence"), REASONS.values(), ids=REASONS)
def test_an_identity_says_what_is_missing(swtpm: Swtpm, tmp_path: Path, tcti: str, sentence: str) -> None:
    """The device opens, because its identity is readable without the TPM. The hint is not to make a new identity."""
    identity = make(tmp_path, backend="tpm2", environ=swtpm.environ)
    device = LocalDevice(tmp_path, environ={"AMESH_TPM_TCTI": tcti})
    assert device.identity == identity
    for use in (lambda: device.sign(b"m"), device.seal_secret):
        with pytest.raises(KeyStoreError) as caught:
            use()
        assert re.search(sentence, str(caught.value))
        assert "--force" not in str(caught.value)
    forget(tcti)
    assert len(LocalDevice(tmp_path, environ=swtpm.environ).sign(b"m")) == 64


def test_no_permission(swtpm: Swtpm) -> None:
    with folder_of_nobody() as folder:
        make(folder / "amesh", backend="tpm2", environ=swtpm.environ)
        device = folder / "tpmrm0"
        device.touch()
        device.chmod(0)
        give_to_nobody(folder)
        if os.geteuid() == 0:
            os.chown(device, 0, 0)
        drop = f"import os\nif os.geteuid() == 0: os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
        code = (
            "from authmesh import keystore\nfrom authmesh.device import LocalDevice\n"
            "from authmesh.keystore.tpm.place import load_library\nload_library()\n"
            f"{drop}environ = {{'AMESH_TPM_TCTI': 'device:{device}'}}\n"
            "print(keystore.unavailable('tpm2', environ))\n"
            f"try: LocalDevice({str(folder / 'amesh')!r}, environ=environ).sign(b'm')\nexcept Exception as error: print(error)\n"
        )
        lines = process(code).splitlines()
    for line in lines:
        assert f"no permission for {device}. Add the user to the group of the device (usermod -aG tss " in line
    assert lines[1].startswith("This key is in a TPM 2.0 that cannot be used. ")


def test_no_folder_for_temporary_files(swtpm: Swtpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a read-only root."""

    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    forget(swtpm.tcti)
    monkeypatch.setattr("tempfile.gettempdir", none)
    assert "Set TMPDIR, or use /dev/tpmrm0" in str(unavailable(swtpm.tcti))
    assert make(tmp_path, environ=swtpm.environ).storage_backend == "encrypted-file"


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (None, r"The Python package tpm2-pytss is missing\. Install it: pip install 'amesh-django\[tpm\]'"),
        (
            "raise ImportError('libtss2-esys.so.0: cannot open shared object file')",
            r"The library libtss2 is missing or has the wrong version \(libtss2-esys.so.0: cannot open .*apt-get install libtss2-dev",
        ),
    ],
    ids=["no package", "no library"],
)
def test_nothing_is_installed(swtpm: Swtpm, tmp_path: Path, body: str | None, sentence: str) -> None:
    stub = tmp_path / "stub"
    stub.mkdir()
    block = "import sys; sys.modules['tpm2_pytss'] = None\n"
    if body is not None:
        (stub / "tpm2_pytss.py").write_text(body)
        block = ""
    make(tmp_path / "amesh", backend="tpm2", environ=swtpm.environ)
    code = (
        f"{block}from pathlib import Path\nimport datetime as dt\nfrom authmesh import keystore\n"
        "from authmesh.device import LocalDevice, init_device\n"
        f"print(keystore.unavailable('tpm2'))\n"
        f"try: LocalDevice({str(tmp_path / 'amesh')!r}).sign(b'm')\nexcept Exception as error: print(error)\n"
        f"print(init_device(Path({str(tmp_path / 'new')!r}), 'n', now=dt.datetime.now(dt.UTC)).storage_backend)\n"
    )
    why, use, backend = process(code, stub=stub, environ=swtpm.environ).splitlines()
    assert re.search(sentence, why)
    assert use.startswith("This key is in a TPM 2.0 that cannot be used. ") and re.search(sentence, use)
    assert backend == "encrypted-file"


def test_importing_the_app_needs_no_tpm_library() -> None:
    code = "import sys, authmesh.client, authmesh.keystore.tpm.store; print('tpm2_pytss' in sys.modules)"
    assert process(code) == "False"


def test_the_library_is_silent(tmp_path: Path) -> None:
    """Every error is raised. Lines that the C library prints would appear between those of the command."""
    env = {**os.environ, "AMESH_TPM_TCTI": f"swtpm:port={free_port()}", "AUTH_MESH_DIR": str(tmp_path / "a")}
    done = subprocess.run([*AMESH, "init", "--name", "n", "--json"], env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout)["storageBackend"] == "encrypted-file"


@pytest.mark.parametrize(
    ("said", "name", "manager", "many"),
    [
        (None, "device:/dev/tpmrm0", True, True),
        ("", "device:/dev/tpmrm0", True, True),
        ("device", "device:/dev/tpmrm0", True, True),
        (" device:/dev/tpmrm1 ", "device:/dev/tpmrm1", True, True),
        ("device:/dev/tpm0", "device:/dev/tpm0", False, False),
        ("tabrmd:", "tabrmd:", True, True),
        ("tabrmd", "tabrmd", True, True),
        ("swtpm:port=2321", "swtpm:port=2321", False, True),
        ("mssim:host=h", "mssim:host=h", False, False),
        ("swtpm:port=\udcff", "swtpm:port=?", False, True),
    ],
)
def test_names_of_tpms(said: str | None, name: str, manager: bool, many: bool) -> None:
    assert tcti_name({} if said is None else {"AMESH_TPM_TCTI": said}) == name
    assert (has_manager(name), takes_many(name)) == (manager, many)


def test_a_device_that_another_program_has_open(swtpm: Swtpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/tpm0 accepts one program at a time, so opening it is repeated until it is free."""
    device = tmp_path / "tpm0"
    device.touch()
    tries = []
    real = os.open

    def busy(path: object, flags: int, *more: int, **options: int) -> int:
        if path == str(device):
            tries.append(1)
            if len(tries) < 6:
                raise OSError(16, "Device or resource busy")
        return real(path, flags, *more, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", busy)
    store = TpmKeyStore(tmp_path / "keys", f"device:{device}", str)
    with pytest.raises(KeyStoreError, match="does not respond"):  # the file is not a TPM
        store.create()
    assert len(tries) > 6
    forget(f"device:{device}")
    assert stat.S_ISREG(device.stat().st_mode)
