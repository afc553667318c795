"""What keeps a request from a server, in words: the network, TLS, proxies, and the variables that httpx reads."""

from __future__ import annotations

import socket
import ssl
import urllib.request
from typing import TYPE_CHECKING

from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError, InvalidInput

from .words import first_line

if TYPE_CHECKING:
    import httpx

CHECK = "Check the address, the network and the firewall, and that the server is running."


class Unreachable(AmeshError):
    """The server cannot be reached, or does not answer."""

    code = "no_answer"
    default_message = "The server did not answer."
    default_hint = CHECK


def environment_problem() -> AmeshError | None:
    """Return an error if httpx cannot use the variables for proxies and certificates, or None.

    The text is ours, because the text of httpx may contain parts of a proxy's password.
    """
    import httpx  # quick start: most commands send no request

    try:
        httpx.Client().close()
    except (httpx.InvalidURL, ValueError):
        return InvalidInput(
            "One of the variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY is not a valid address.",
            hint="Correct or unset it.",
        )
    except ImportError:
        return InvalidInput(
            "A variable for proxies names a SOCKS proxy, which needs a further package.",
            hint="Install it with pip install 'httpx[socks]', or unset the variable.",
        )
    except OSError as error:
        why = error.strerror or type(error).__name__
        return InvalidInput(
            f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names cannot be read ({why}).",
            hint="Correct or unset the variable.",
        )
    return None


def _goes_through_proxy(url: httpx.URL) -> bool:
    proxies = urllib.request.getproxies()
    return (url.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(url.host)


def _causes(error: BaseException) -> list[BaseException]:
    causes: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in causes:
        causes.append(at)
        at = at.__cause__ or at.__context__
    return causes


def unreachable(error: BaseException, url: httpx.URL) -> Unreachable:
    """Return the error that says why a server sent no usable answer, as far as the causes of a library's error tell."""
    import httpx  # quick start: most commands send no request

    causes = _causes(error)
    if isinstance(error, httpx.ProxyError) or (isinstance(error, httpx.ConnectError) and _goes_through_proxy(url)):
        if not any(isinstance(cause, ssl.SSLError) for cause in causes):
            return Unreachable(
                f"The proxy on the way to {url.host} cannot be reached, or rejects the connection ({first_line(error)}).",
                hint=f"Correct {url.scheme.upper()}_PROXY or ALL_PROXY, or name the server in NO_PROXY.",
            )
    if isinstance(error, httpx.RemoteProtocolError | httpx.DecodingError):
        return Unreachable(
            f"{url.host} did not send a valid HTTP response ({first_line(error).partition(': bytearray(')[0]}).",
            hint="Check the address and the port. If the server uses TLS, its address begins with https://.",
        )
    if isinstance(error, httpx.ReadError | httpx.WriteError):
        return Unreachable(
            f"{url.host} closed the connection before its answer was complete ({first_line(error)}).",
            hint="Try again, and read the log of the server and of the proxies in front of it.",
        )
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Unreachable(
                f"The TLS certificate of {url.host} is not trusted: {clean_line(cause.verify_message)}. Someone may be pretending to be "
                "the server.",
                hint="Check the address and the clock of this machine. For a server of your own, install the certificate of its authority "
                "(SSL_CERT_FILE).",
            )
        if isinstance(cause, ssl.SSLError):
            return Unreachable(
                f"The TLS connection to {url.host} failed.",
                hint="Check the address and the port. If the server does not use TLS, its address begins with http://.",
            )
        if isinstance(cause, socket.gaierror | UnicodeError):
            return Unreachable(
                f"There is no server with the name {url.host}.", hint="Check the address, and the DNS of this machine."
            )
        if isinstance(cause, ConnectionRefusedError):
            port = url.port or (443 if url.scheme == "https" else 80)
            return Unreachable(f"Nothing listens at {url.host}, port {port}.", hint=CHECK)
    return Unreachable(f"{url.host} cannot be reached ({first_line(error)}).", hint=CHECK)
