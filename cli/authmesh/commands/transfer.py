"""import and export: a sealed allow list between a file and the home of this device."""

from __future__ import annotations

import contextlib
from argparse import ArgumentParser
from pathlib import Path

from authmesh.device import LocalDevice
from authmesh.files.storage import atomic_write, json_text, locked
from authmesh.protocol.allow_list import DeviceEntry, open_document, seal_document
from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AllowListIntegrityFailure, Run, StorageError

from .context import Context
from .spec import Command
from .terminal.lines import Styled
from .words import counted, named


def import_list(context: Context, *, file: str, owner: str | None) -> None:
    """Trust the devices of a sealed file."""
    own = context.own_device()
    owning = LocalDevice(owner) if owner else own
    entries = _open(context, file, owning)
    others = [entry for entry in entries if entry.public_key != own.identity.public_key]
    allow_list = context.home.allow_list()
    known = {entry.public_key for entry in allow_list.read()}
    skipped = allow_list.add_all(others)
    skipped_keys = {entry.public_key for entry in skipped}
    imported = [entry for entry in others if entry.public_key not in skipped_keys]
    refreshed = sum(entry.public_key in known for entry in imported)
    new = len(imported) - refreshed
    console = context.console
    console.say(Styled(f"Imported {counted(len(imported), 'device')}: {new} new, {refreshed} refreshed.", "good"))
    for entry in skipped:
        console.warn(
            (
                f"{named(entry)} was revoked earlier and was not imported. To trust it again, run ",
                Run("trust"),
                " with the line that export-key prints on that device.",
            )
        )
    if len(others) < len(entries):
        console.warn(f"{own.identity.device_id} is this device itself and was not imported.")
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
        raise AllowListIntegrityFailure(
            f"{clean_line(file)} is not an allow list: it is not UTF-8 text. Nothing was imported.", reason="not_json"
        ) from None
    except AllowListIntegrityFailure as error:
        raise AllowListIntegrityFailure(
            f"{clean_line(file)} does not match the seal of {owning.identity.device_id} ({error.reason}). Nothing was imported.",
            hint="If it is the list of another device, name the directory of that device with --owner DIR.",
            reason=error.reason,
        ) from None
    return entries


def _import_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="The file; - reads it from stdin.")
    parser.add_argument(
        "--owner",
        metavar="DIR",
        help="Device directory of the device that the list belongs to. Defaults to this server's own.",
    )


IMPORT = Command(
    "import",
    "Trust the devices of a sealed allow_list.json.",
    import_list,
    _import_arguments,
    details=(
        "The command imports all devices or none. It verifies the seal of the file first, with the key of the device that the list belongs "
        "to. Devices that are already trusted are refreshed. Devices that were revoked stay revoked, and are named.",
    ),
)


def export_list(context: Context, *, file: str, force: bool) -> None:
    """Write the trusted devices to a sealed file."""
    device = context.own_device()
    entries = context.home.allow_list().read()
    exported = {entry.device_id for entry in entries}
    left_out = [device for device in context.home.devices() if device.entry.device_id not in exported]
    waiting = [device for device in left_out if device.state not in ("denied", "revoked") and not device.revoked_at]
    if waiting:
        context.console.warn(
            "A file has no states, so it contains active devices only. Left out: "
            + ", ".join(f"{named(device.entry)} ({device.state})" for device in waiting)
            + "."
        )
    in_groups = [device for device in context.home.devices() if device.groups and device.entry.device_id in exported]
    if in_groups:
        context.console.warn(
            "A file has neither groups nor expiry. Exported without its groups: "
            + ", ".join(named(device.entry) for device in in_groups)
            + "."
        )
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
    # Beside an identity, the file is the allow list of that device, which other processes change under this lock.
    with locked(path.parent) if (path.parent / "identity.json").exists() else contextlib.nullcontext():
        if path.exists() and not force:
            raise StorageError(
                f"{file} already exists. Nothing was written.", hint="Overwrite it with --force, or name another file."
            )
        atomic_write(path, document)
    sealed = f"sealed for {device.identity.device_id}"
    context.console.say(Styled(f"Exported {counted(len(entries), 'device')} to {file}, {sealed}.", "good"))
    context.console.result({"file": file, "devices": len(entries), "deviceId": device.identity.device_id})


def _export_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="The file. Defaults to -, which is stdout."
    )
    parser.add_argument("--force", action="store_true", help="Overwrite an existing file.")


EXPORT = Command(
    "export",
    "Write the trusted devices to a sealed allow_list.json.",
    export_list,
    _export_arguments,
    details=(
        "The file is sealed for the identity of this server. It contains active devices only, with their own scopes, and neither groups nor expiry "
        "nor mapped users.",
    ),
)
