"""import and export: a sealed allow list between a file and the store that the front end hands over."""

from __future__ import annotations

import contextlib
from pathlib import Path

from authmesh.device import LocalDevice
from authmesh.files.storage import atomic_write, json_text, locked
from authmesh.protocol.allow_list import DeviceEntry, open_document, seal_document
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AllowListIntegrityFailure, StorageError

from .spec import Command, Context, Option
from .terminal.console import Line
from .words import named


def import_list(context: Context, *, file: str, owner: str | None) -> None:
    """Take over the devices of a sealed file."""
    own = context.own_device()
    owning = LocalDevice(owner) if owner else own
    entries = _open(context, file, owning)
    others = [entry for entry in entries if entry.public_key != own.identity.public_key]
    allow_list = context.allow_list()
    known = {entry.public_key for entry in allow_list.read()}
    skipped = allow_list.add_all(others)
    skipped_keys = {entry.public_key for entry in skipped}
    imported = [entry for entry in others if entry.public_key not in skipped_keys]
    refreshed = sum(entry.public_key in known for entry in imported)
    console = context.console
    console.say(
        Line(f"Imported {_devices(len(imported))}: {len(imported) - refreshed} new, {refreshed} refreshed.", "good")
    )
    for entry in skipped:
        console.warn(
            f"{named(entry)} was revoked here and was left out. To trust it again, use {context.command('trust')}."
        )
    if len(others) < len(entries):
        console.warn(f"{own.identity.device_id} is this device itself and was left out.")
    console.result(
        {
            "imported": [entry.device_id for entry in imported],
            "refreshed": refreshed,
            "skipped": [entry.device_id for entry in skipped],
        }
    )


def _open(context: Context, file: str, owning: LocalDevice) -> list[DeviceEntry]:
    try:
        text = (context.console.read_stdin() if file == "-" else Path(file).read_bytes()).decode("utf-8")
        entries, _ = open_document(text, key_material=owning.seal_secret(), device_id=owning.identity.device_id)
    except UnicodeDecodeError:
        raise AllowListIntegrityFailure(f"{file} is not an allow list: not UTF-8 text.", reason="not_json") from None
    except AllowListIntegrityFailure as error:
        raise AllowListIntegrityFailure(
            f"{clean_line(file)} does not open with the seal of {owning.identity.device_id} ({error.reason}). If it is the list "
            "of another device, name that device's directory: --owner DIR. Nothing was imported.",
            reason=error.reason,
        ) from None
    return entries


def _devices(count: int) -> str:
    return f"{count} device{'s' if count != 1 else ''}"


IMPORT = Command(
    "import",
    "Take over the devices of a sealed allow_list.json.",
    import_list,
    (
        Option(("file",), "The file; - reads it from stdin.", metavar="FILE", required=True),
        Option(("--owner",), "Device directory of the device whose list it is; else this server's own.", metavar="DIR"),
    ),
    details=(
        "All or none. The seal of the file is verified first, with the key of the device whose list it is. Devices that are known "
        "are refreshed; devices that were revoked here stay revoked, and are named.",
    ),
)


def export_list(context: Context, *, file: str, force: bool) -> None:
    """Write the trusted devices as a sealed file."""
    device = context.own_device()
    entries = context.allow_list().read()
    document = json_text(
        seal_document(
            entries,
            key_material=device.seal_secret(),
            device_id=device.identity.device_id,
            updated_at=context.now(),
        )
    )
    if file == "-":
        context.console.write_data(f"{document}\n".encode())
        return
    path = Path(file)
    # Beside an identity it is that device's list: other processes change it under this lock.
    with locked(path.parent) if (path.parent / "identity.json").exists() else contextlib.nullcontext():
        if path.exists() and not force:
            raise StorageError(
                f"{file} exists already. --force overwrites it, or name another file. Nothing was written."
            )
        atomic_write(path, document)
    context.console.say(
        Line(f"Exported {_devices(len(entries))} to {file}, sealed for {device.identity.device_id}.", "good")
    )
    context.console.result({"file": file, "devices": len(entries), "deviceId": device.identity.device_id})


EXPORT = Command(
    "export",
    "Write the trusted devices as a sealed allow_list.json.",
    export_list,
    (
        Option(("file",), "The file; stdout if left out or -.", metavar="FILE", default="-"),
        Option(("--force",), "Overwrite a file that is there.", "flag"),
    ),
    details=("It is sealed for this server's identity. Revoked devices and mapped users are not in it.",),
)
