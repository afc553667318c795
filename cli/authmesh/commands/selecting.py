"""The devices that a person names on the command line: by device ID, by the beginning of one, or by name."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from authmesh.protocol.allow_list import DeviceEntry
from authmesh.protocol.display import NO_NAME, clean
from authmesh.protocol.errors import AllowListError, DeviceNotFound, Hint, Run

from .words import named

_ID_PREFIX = "am_"
#: More devices are counted, but not named.
_MAX_NAMED = 5


class AmbiguousDevice(AllowListError):
    """Several devices have the name, or begin of a device ID, that was given."""

    code = "device_ambiguous"
    default_message = "Several devices have this name. Nothing was changed."
    default_hint = "Use the device ID of one of them."


def add_devices(parser: ArgumentParser, *, optional: bool = False) -> None:
    """Add the argument that names devices.

    Args:
        parser: the parser of the command.
        optional: True if no device need be named.
    """
    parser.add_argument(
        "devices",
        metavar="DEVICE",
        nargs="*" if optional else "+",
        help="Device ID (am_ and 16 characters) or name of a device, or the beginning of a device ID. Only one device may have it. Several "
        "devices may be named.",
    )


def select(entries: Sequence[DeviceEntry], words: Sequence[str], *, of: str = "trusted device") -> list[DeviceEntry]:
    """Return the devices that a person named, each once, in the order of the words.

    The beginning of a name is not enough, and a word that begins as a device ID is never a name: a device chooses its own name, and could
    choose the beginning of another's, or the device ID of a device that was revoked.

    Args:
        entries: the devices to choose from.
        words: device IDs, beginnings of device IDs, or names.
        of: what the devices are, for a sentence.

    Raises:
        DeviceNotFound: no device has one of the names.
        AmbiguousDevice: several devices have one of the names.
    """
    found = [_one(entries, word, of) for word in words]
    return list({entry.device_id: entry for entry in found}.values())


def _one(entries: Sequence[DeviceEntry], word: str, of: str) -> DeviceEntry:
    if word.startswith(_ID_PREFIX):
        has = f"a device ID that begins with {word!r}"
        found = [entry for entry in entries if word != _ID_PREFIX and entry.device_id.startswith(word)]
    else:
        has = f"the name {word!r}"
        name = clean(word)
        found = [entry for entry in entries if clean(entry.friendly_name) == name != NO_NAME]
    if len(found) == 1:
        return found[0]
    if found:
        raise AmbiguousDevice(
            f"Several devices have {has}: {_listed(found)}. Nothing was changed.", hint=AmbiguousDevice.default_hint
        )
    raise DeviceNotFound(f"No {of} has {has}. Nothing was changed.", hint=_candidates(entries, word))


def _candidates(entries: Sequence[DeviceEntry], word: str) -> Hint:
    see_all: tuple[str | Run, ...] = ("To see all devices, run ", Run("list"), ".")
    like = word.casefold()
    similar = [entry for entry in entries if like in f"{entry.device_id} {clean(entry.friendly_name)}".casefold()]
    shown = similar or list(entries)
    if not shown:
        return see_all
    return (f"{'Similar are' if similar else 'Trusted are'}: {_listed(shown)}. ", *see_all)


def _listed(entries: Sequence[DeviceEntry]) -> str:
    more = len(entries) - _MAX_NAMED
    return ", ".join(named(entry) for entry in entries[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
