"""The servers whose addresses this device knows: ``servers.json`` of the device directory.

The file grants nothing: the key of each server is in the allow list, under the seal.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from authmesh.files.storage import atomic_write, json_text, locked
from authmesh.protocol.encoding import format_time, parse_time
from authmesh.protocol.errors import DirectoryError

FILE_VERSION = "1"
_DAMAGED = "Restore it from a backup, or move it away: enroll writes a new one."


@dataclass(frozen=True, slots=True)
class EnrolledServer:
    """A server at which this device has enrolled, or whose address a person has named.

    Attributes:
        device_id: device ID of the server.
        url: address of its ``amesh/``, with a slash at the end.
        jti: number of the enrollment token; empty if a person has named the address.
        state: ``active`` or ``pending``, as the server answered.
        enrolled_at: time when the server was stored.
    """

    device_id: str
    url: str
    jti: str
    state: str
    enrolled_at: dt.datetime

    def to_json(self) -> dict[str, Any]:
        """Return the object of the file."""
        return {
            "deviceId": self.device_id,
            "url": self.url,
            "jti": self.jti,
            "state": self.state,
            "enrolledAt": format_time(self.enrolled_at),
        }


class ServerStore:
    """The servers of a device directory. Several processes may use it; each change is written in one step.

    Args:
        directory: the device directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "servers.json"

    def read(self) -> list[EnrolledServer]:
        """Return all servers, in the order in which they were stored.

        Raises:
            DirectoryError: the file cannot be read, or is damaged.
        """
        try:
            value = json.loads(self._path.read_text("utf-8"))
            return [
                EnrolledServer(
                    str(one["deviceId"]),
                    str(one["url"]),
                    str(one["jti"]),
                    str(one["state"]),
                    parse_time(one["enrolledAt"]),
                )
                for one in value["servers"]
            ]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise DirectoryError(
                f"{self._path} cannot be read ({error.strerror}).", hint="Check its owner and permissions."
            ) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DirectoryError(f"{self._path} is damaged.", hint=_DAMAGED) from None

    def put(self, server: EnrolledServer) -> None:
        """Add a server, or replace the entry with its device ID.

        Raises:
            DirectoryError: the file cannot be read or written.
            AllowListBusy: another process holds the lock of the directory.
        """
        with locked(self._directory):
            others = [one for one in self.read() if one.device_id != server.device_id]
            value = {"version": FILE_VERSION, "servers": [one.to_json() for one in (*others, server)]}
            atomic_write(self._path, json_text(value))
