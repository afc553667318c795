"""The address of a client, as the limits count it: an IPv4 address, or a network of IPv6; and the connections of each."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

#: The smallest network that a provider gives to one customer. The customer is free to choose addresses in it.
_IPV6_NETWORK: Final = 64
#: The network that most providers and companies get. Anyone who has one can choose among 65,536 addresses of the size above.
_WIDE_IPV6_NETWORK: Final = 48
#: The address of a client that has none, such as one that connects through a Unix socket.
LOCAL: Final = "local"


def client_address(scope: Mapping[str, Any], proxies: int) -> str:
    """Return the address that the limits of a client count: IPv4, or the /64 of IPv6.

    Args:
        scope: the ASGI scope.
        proxies: the number of trusted proxies. Each of them appends to X-Forwarded-For the address from which it was called. The
            values further left may be inventions of the client.
    """
    client = scope.get("client")
    direct = network(str(client[0])) if client else None
    if proxies:
        forwarded = ",".join(
            value.decode("latin-1") for name, value in scope.get("headers", ()) if name.lower() == b"x-forwarded-for"
        ).split(",")
        hops = [hop.strip() for hop in forwarded if hop.strip()]
        if hops:
            # If the value is not an address, the limits count the address of the proxy.
            return network(hops[-min(proxies, len(hops))]) or direct or LOCAL
    return direct or LOCAL


def wide_network(address: str) -> str:
    """Return the network whose addresses share some limits: the /48 around an IPv6 /64, or the address itself."""
    if "/" not in address:
        return address
    return str(ipaddress.ip_network(address).supernet(new_prefix=_WIDE_IPV6_NETWORK))


class Tally:
    """The number of connections of each address, and of each wide network.

    Args:
        limit: the maximum number of connections of one address; 0 sets no limit.
        addresses: the number of addresses that a wide network counts as.
    """

    def __init__(self, limit: int, addresses: int) -> None:
        self._limit = limit
        self._wide_limit = limit * addresses
        self._counts: Counter[str] = Counter()
        self._wide_counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._counts) + len(self._wide_counts)

    def is_full(self, address: str) -> bool:
        """Return True if an address, or its wide network, may have no further connection."""
        return self._limit > 0 and (
            self._counts[address] >= self._limit or self._wide_counts[wide_network(address)] >= self._wide_limit
        )

    def add(self, address: str) -> None:
        """Count a connection."""
        self._counts[address] += 1
        self._wide_counts[wide_network(address)] += 1

    def remove(self, address: str) -> None:
        """Forget a connection."""
        for counts, key in ((self._counts, address), (self._wide_counts, wide_network(address))):
            counts[key] -= 1
            if not counts[key]:
                del counts[key]


def network(text: str) -> str | None:
    """Return an address in its canonical form, without a port, or None if the text is not an address."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(address), _IPV6_NETWORK), strict=False))
        address = address.ipv4_mapped
    return str(address)
