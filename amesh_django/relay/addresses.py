"""Who a client is, as far as limits go: its address, or that of its network."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any, Final

#: What one customer of a provider gets at least. Its single addresses are free to choose.
_IPV6_NETWORK: Final = 64
#: For a client that has no address, such as one that comes by a Unix socket.
LOCAL: Final = "local"


def client_address(scope: Mapping[str, Any], proxies: int) -> str:
    """The address that the limits of a client hang on: IPv4, or the /64 of IPv6.

    Args:
        scope: of ASGI.
        proxies: how many proxies in front are to be believed. Each adds to the right of X-Forwarded-For the address from which
            it was called, so what stands further left than they reach is the client's own invention.
    """
    client = scope.get("client")
    direct = network(str(client[0])) if client else None
    if proxies:
        forwarded = ",".join(
            value.decode("latin-1") for name, value in scope.get("headers", ()) if name.lower() == b"x-forwarded-for"
        ).split(",")
        hops = [hop.strip() for hop in forwarded if hop.strip()]
        if hops:
            # Not an address: then the limits of the proxy itself have to do.
            return network(hops[-min(proxies, len(hops))]) or direct or LOCAL
    return direct or LOCAL


def network(text: str) -> str | None:
    """An address as text, brought to one form; a port behind it is left out. None if it is no address."""
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
