"""What must happen before a key is looked up in the allow list: other parts of the app register it, such as the fleet, which stands above."""

from __future__ import annotations

from collections.abc import Callable

#: Gets the public key (33 bytes) of the request. May raise a RequestError, which rejects the request.
BeforeLookup = Callable[[bytes], None]

_before_lookup: list[BeforeLookup] = []


def connect(function: BeforeLookup) -> None:
    """Call a function before each lookup. Connecting it again changes nothing."""
    if function not in _before_lookup:
        _before_lookup.append(function)


def before_lookup(public_key: bytes) -> None:
    """Call all functions that are connected.

    Args:
        public_key: the key of the request, of which nothing is verified.

    Raises:
        RequestError: one of them rejects the request.
    """
    for function in _before_lookup:
        function(public_key)
