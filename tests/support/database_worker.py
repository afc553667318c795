"""A process of its own that changes the allow list in the database; the tests run several at once, and kill some.

Usage: ``python -m tests.support.database_worker WHAT SEED COUNT``; prints a line for each change that was done.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import sys

import django

WHEN = dt.datetime(2026, 3, 28, 10, 5, tzinfo=dt.UTC)


def public_key(seed: str, number: int) -> bytes:
    """33 bytes that stand for a key; the list does not ask whether they lie on the curve."""
    return b"\x02" + hashlib.sha256(f"{seed}/{number}".encode()).digest()


def main(what: str, seed: str, count: int) -> None:
    from amesh_django.allow_list import DatabaseAllowList
    from authmesh.protocol import DeviceEntry, device_id

    devices = DatabaseAllowList(by="worker")
    for number in range(count):
        key = public_key(seed, number)
        if what == "revoke":
            devices.revoke(device_id(key), reason="test")
        elif what == "grant":
            devices.set_permissions(device_id(key), {"shell": True})
        elif what == "permit":
            devices.update_permissions(
                device_id(public_key("shared", 0)), lambda before, number=number: {**before, f"{seed}-{number}": True}
            )
        else:
            devices.add(DeviceEntry.new(key, f"{seed} {number}", "target", added_at=WHEN))
        print(number, flush=True)


if __name__ == "__main__":
    django.setup()
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
