"""fetch and header: a signed request, and just its header."""

from __future__ import annotations

import base64
import os
import re
from typing import TYPE_CHECKING

from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError, InvalidInput

from .spec import Command, Context, Option
from .terminal.console import UsageProblem

if TYPE_CHECKING:
    import httpx

_DATA = Option(
    ("--data", "-d"),
    "Body of the request: text, @FILE, or @- for stdin; sent byte for byte. A body on the command line can be seen by others "
    "on this machine.",
    metavar="DATA",
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110 §5.6.2
_FORM = "application/x-www-form-urlencoded"


class NoAnswer(AmeshError):
    """The server could not be reached, or did not answer."""

    code = "no_answer"


class BadStatus(AmeshError):
    """The server answered with 400 or more, and ``--fail`` was given."""

    code = "bad_status"


def _body(context: Context, data: str | None) -> bytes | None:
    if data is None or not data.startswith("@"):
        return None if data is None else os.fsencode(data)
    if data == "@-":
        return context.console.read_stdin()
    with open(data[1:], "rb") as file:
        return file.read()


def _header(text: str) -> tuple[str, str]:
    name, colon, value = (part.strip() for part in text.partition(":"))
    if not colon or not _TOKEN(name) or not value.isascii() or not value.replace("\t", " ").isprintable():
        raise UsageProblem(f"{text!r} is not a header. Write it as -H 'Name: value', in printable ASCII.")
    if name.lower() == "authorization":
        raise UsageProblem("The Authorization header is what this command makes. Leave that -H out.")
    return name, value


def _method(text: str) -> str:
    if not _TOKEN(text):
        raise UsageProblem(f"{text!r} is not an HTTP method. Name one such as GET or POST.")
    return text.upper()


def environment_problem() -> str | None:
    """What is wrong with the variables for proxies and certificates, which httpx reads; None where nothing is.

    In our words, for those of httpx may hold a part of a proxy's password.
    """
    import httpx

    try:
        httpx.Client().close()
    except (httpx.InvalidURL, ValueError):
        return (
            "A variable for proxies (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) is no address. Correct or unset it."
        )
    except ImportError:
        return "A variable for proxies names one of SOCKS, which needs a package more: pip install 'httpx[socks]'. Or unset it."
    except OSError as error:
        why = error.strerror or type(error).__name__
        return f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR names can't be read ({why}). Correct or unset it."
    return None


def fetch(
    context: Context,
    *,
    url: str,
    method: str | None,
    data: str | None,
    header: tuple[str, ...],
    include: bool,
    location: bool,
    timeout: float,
    fail: bool,
) -> None:
    """Send a signed request and print the body of the answer."""
    import httpx  # here, for most commands send no request and are to start quickly

    from authmesh.client import fetch as send

    headers = [_header(text) for text in header]
    body = _body(context, data)
    if body is not None and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", _FORM))
    device = context.own_device()
    try:
        host = httpx.URL(url).host
        response = send(
            url,
            _method(method or ("GET" if body is None else "POST")),
            headers=headers,
            body=body,
            device=device,
            timeout=timeout,
            follow_redirects=location,
        )
    except InvalidInput:
        raise
    except (
        httpx.InvalidURL,
        httpx.UnsupportedProtocol,
        httpx.LocalProtocolError,
        ValueError,
        ImportError,
    ) as error:
        problem = environment_problem()
        raise InvalidInput(
            problem or f"This request can't be sent: {error}. A URL begins with http:// or https://."
        ) from None
    except httpx.TimeoutException:
        raise NoAnswer(f"{host} did not answer within {timeout:g} s. Try again, or allow more: --timeout.") from None
    except httpx.HTTPError as error:
        why = str(error) or type(error).__name__
        raise NoAnswer(f"{host} could not be reached: {why}. Check address, network and certificate.") from None
    _show(context, response, include)
    if fail and response.status_code >= 400:
        raise BadStatus(f"{host} answered {response.status_code}.")


def _show(context: Context, response: httpx.Response, include: bool) -> None:
    console = context.console
    if console.as_json:
        try:
            text: str | None = response.content.decode("utf-8")
        except UnicodeDecodeError:
            text = None
        console.result(
            {
                "status": response.status_code,
                "headers": response.headers.multi_items(),
                "body": text,
                "bodyBase64": base64.b64encode(response.content).decode(),
            }
        )
        return
    if include:
        console.hint(f"{response.http_version} {response.status_code} {response.reason_phrase}")
        for name, value in response.headers.multi_items():
            console.hint(f"{name}: {value}")
        console.hint("")
    body = response.content
    if console.is_terminal():
        # A server must not steer the terminal of whoever calls it.
        lines = body.decode("utf-8", "replace").split("\n")
        body = "\n".join([clean_line(line.rstrip("\r")) for line in lines]).encode()
        if body and not body.endswith(b"\n"):
            body += b"\n"
    console.write_data(body)


FETCH = Command(
    "fetch",
    "Send a signed request and print the body of the answer.",
    fetch,
    (
        Option(("url",), "Where to.", metavar="URL", required=True),
        Option(("--method", "-X"), "HTTP method; GET, or POST with --data, if left out.", metavar="METHOD"),
        _DATA,
        Option(
            ("--header", "-H"),
            "A further header, 'Name: value'. May be given several times.",
            multiple=True,
            metavar="HEADER",
        ),
        Option(("--include", "-i"), "Print status and headers of the answer on stderr.", "flag"),
        Option(("--location", "-L"), "Follow redirects; each is signed anew.", "flag"),
        Option(("--timeout",), "Seconds to wait for the server.", "seconds", metavar="SECONDS", default=30.0),
        Option(("--fail", "-f"), "Exit with 1 if the status is 400 or more; the body is printed all the same.", "flag"),
    ),
    details=(
        f"A body is sent as {_FORM} unless -H gives its Content-Type. The exit code is 0 for whatever answer, as with curl, "
        "unless --fail is given. On a terminal control characters of the body are left out; a file or pipe gets every byte.",
    ),
)


def header(context: Context, *, method: str, url: str, data: str | None) -> None:
    """Print the Authorization header of a request that something else sends."""
    import httpx

    from authmesh.client import authorization_header

    body = _body(context, data)
    device = context.own_device()
    try:
        value = authorization_header(_method(method), url, body or b"", device=device)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidInput(
            f"This is not a URL: {error}. It begins with http://, https:// or, for a path alone, /."
        ) from None
    context.console.data(f"Authorization: {value}")
    context.console.result({"name": "Authorization", "value": value})


HEADER = Command(
    "header",
    "Print the Authorization header for a request that something else sends.",
    header,
    (
        Option(("method",), "HTTP method.", metavar="METHOD", required=True),
        Option(("url",), "URL, or its path and query alone.", metavar="URL", required=True),
        _DATA,
    ),
    details=('It is good for one request within 30 seconds: curl -H "$(amesh header GET URL)" URL',),
)
