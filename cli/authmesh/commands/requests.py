"""fetch and header: a signed request, or only its header."""

from __future__ import annotations

import base64
import os
import re
from argparse import ArgumentParser
from typing import TYPE_CHECKING

from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError, InvalidInput

from .context import Context
from .network import Unreachable, environment_problem, unreachable
from .responses import Answer, shown
from .spec import Command
from .terminal.errors import ExitingError, UsageProblem
from .words import first_line

if TYPE_CHECKING:
    import httpx

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch  # RFC 9110 §5.6.2
_FORM = "application/x-www-form-urlencoded"
_NOT_SENT = "No request was sent."
_SENT = "The request was sent, so the server may have carried it out."
_MAX_SECONDS = 86400


class BadStatus(ExitingError):
    """The server answered with a status of 400 or more, and ``--fail`` was given. The exit code is that of curl."""

    code = "bad_status"
    exit_code = 22
    default_message = "The server rejected the request."


def _add_data(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        "-d",
        metavar="DATA",
        help="Body of the request: a text, @FILE for the content of a file, or @- for stdin. It is sent byte for byte. Other users of this "
        "machine can see a text on the command line.",
    )


def _body(context: Context, data: str | None) -> bytes | None:
    if data is None or not data.startswith("@"):
        return None if data is None else os.fsencode(data)
    if data == "@-":
        return context.console.read_stdin()
    try:
        with open(data[1:], "rb") as file:
            return file.read()
    except OSError as error:
        raise InvalidInput(
            f"{data[1:]}: {error.strerror}. {_NOT_SENT}",
            hint="Check the path after the @, its owner and its permissions.",
        ) from None


def _header(text: str) -> tuple[str, str]:
    name, colon, value = (part.strip() for part in text.partition(":"))
    if not colon or not _TOKEN(name) or not value.isascii() or not value.replace("\t", " ").isprintable():
        raise UsageProblem(
            f"{text!r} is not a valid header. {_NOT_SENT}", hint="Write it as -H 'Name: value', in printable ASCII."
        )
    if name.lower() == "authorization":
        raise UsageProblem(
            f"This command sets the Authorization header itself. {_NOT_SENT}", hint="Omit -H 'Authorization: …'."
        )
    return name, value


def _method(text: str) -> str:
    if not _TOKEN(text):
        raise UsageProblem(
            f"{text!r} is not a valid HTTP method. {_NOT_SENT}", hint="Use a method such as GET or POST."
        )
    return text.upper()


def fetch(
    context: Context,
    *,
    url: str,
    method: str | None,
    data: str | None,
    header: list[str],
    include: bool,
    location: bool,
    timeout: float,
    fail: bool,
) -> None:
    """Send a signed request and print the body of the response."""
    import httpx  # quick start: most commands send no request

    from authmesh.client import fetch as send  # quick start: imports httpx

    headers = [_header(text) for text in header]
    body = _body(context, data)
    if body is not None and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", _FORM))
    if not 0 < timeout <= _MAX_SECONDS:
        raise UsageProblem(
            f"--timeout must be a number of seconds greater than 0, and at most {_MAX_SECONDS}. {_NOT_SENT}",
            hint="Use, for example, --timeout 60.",
        )
    address = _address(url)
    device = context.own_device()
    try:
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
    except httpx.HTTPError as error:
        raise _without_answer(error, address, timeout) from None
    except (httpx.InvalidURL, UnicodeError) as error:
        raise environment_problem() or Unreachable(
            f"{address.host} redirects to an address that is not valid ({first_line(error)}). {_SENT}",
            hint="Check the address. The redirect is an error of the server.",
        ) from None
    except (ValueError, ImportError, OSError) as error:
        raise environment_problem() or error from None
    answer = Answer.of(response, own=device.identity.device_id)
    _show(context, response, answer, include)
    failed = fail and response.status_code >= 400
    if context.console.is_terminal(err=True) and not context.console.as_json:
        context.console.beside(*answer.remarks(refusal=not failed))
    if failed:
        text, hint = answer.refusal or ("", "The body of the response may say why. -i shows its headers.")
        status = f"{response.url.host} answered with the status {response.status_code}."
        raise BadStatus(f"{status} {text}".rstrip(), hint=hint)


def _address(text: str) -> httpx.URL:
    """Return the URL of a request.

    Raises:
        InvalidInput: it is not an HTTP URL.
    """
    import httpx  # quick start: most commands send no request

    try:
        url = httpx.URL(text)
        why = "" if url.scheme in ("http", "https") and url.host else "it has no complete HTTP address"
    except (httpx.InvalidURL, UnicodeError) as error:
        why = first_line(error)
    if why:
        raise InvalidInput(
            f"This request cannot be sent: {why}. {_NOT_SENT}", hint="Use a URL that begins with http:// or https://."
        )
    return url


def _without_answer(error: httpx.HTTPError, first: httpx.URL, seconds: float) -> AmeshError:
    """Return the error for a request without a usable answer: why there is none, whether it was sent, and what to do.

    Args:
        error: that of httpx.
        first: the URL of the first request.
        seconds: the time limit.
    """
    import httpx  # quick start: most commands send no request

    url = error.request.url
    sent = _SENT
    if url != first:
        sent = f"The request before the redirect to {url.host} was sent."
    elif isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError):
        sent = _NOT_SENT
    if isinstance(error, httpx.TooManyRedirects):
        return Unreachable(
            f"{first.host} redirects too often. {sent}", hint="Check the address: the server may redirect in a circle."
        )
    if isinstance(error, httpx.UnsupportedProtocol):
        return Unreachable(
            f"{first.host} redirects to {shown(url)}, which is not an address of http or https. {sent}",
            hint="Omit -L, and use the address with the program that it is for.",
        )
    if isinstance(error, httpx.TimeoutException):
        return Unreachable(
            f"{url.host} did not answer within {seconds:g} s. {sent}",
            hint="Try again, or allow more time with --timeout.",
        )
    problem = unreachable(error, url)
    return Unreachable(f"{problem.message} {sent}", hint=problem.hint)


def _show(context: Context, response: httpx.Response, answer: Answer, include: bool) -> None:
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
                **answer.to_json(console.spell),
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
        # A server must not be able to control the terminal.
        lines = body.decode("utf-8", "replace").split("\n")
        body = "\n".join([clean_line(line.rstrip("\r")) for line in lines]).encode()
        if body and not body.endswith(b"\n"):
            body += b"\n"
    console.write_data(body)


def _fetch_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="Address of the request.")
    parser.add_argument(
        "--method", "-X", metavar="METHOD", help="HTTP method. Defaults to GET, or to POST if --data is given."
    )
    _add_data(parser)
    parser.add_argument(
        "--header",
        "-H",
        action="append",
        default=[],
        metavar="HEADER",
        help="A further header, as 'Name: value'. May be given several times.",
    )
    parser.add_argument(
        "--include", "-i", action="store_true", help="Print the status and the headers of the response on stderr."
    )
    parser.add_argument(
        "--location",
        "-L",
        action="store_true",
        help="Follow redirects. A redirect within the same origin, or to https on the same host, is signed again. Any other origin gets "
        "no signature.",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="How many seconds to wait for the server. Defaults to %(default)g.",
    )
    parser.add_argument(
        "--fail",
        "-f",
        action="store_true",
        help="Exit with 22, as curl does, if the status is 400 or more. The body is printed anyway.",
    )


FETCH = Command(
    "fetch",
    "Send a signed request and print the body of the response.",
    fetch,
    _fetch_arguments,
    details=(
        f"A body is sent as {_FORM} unless -H sets its Content-Type. As with curl, the exit code is 0 for every response unless --fail is "
        "given. On a terminal, control characters in the body are left out; a file or a pipe receives every byte. If stderr is a terminal, "
        "the command says there what a rejection means and where a redirect leads.",
    ),
)


def header(context: Context, *, method: str, url: str, data: str | None) -> None:
    """Print the Authorization header of a request that another program sends."""
    import httpx  # quick start: most commands send no request

    from authmesh.client import authorization_header  # quick start: imports httpx

    body = _body(context, data)
    device = context.own_device()
    try:
        value = authorization_header(_method(method), url, body or b"", device=device)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidInput(
            f"This is not a valid URL: {first_line(error)}.",
            hint="Use a URL that begins with http:// or https://, or a path that begins with /.",
        ) from None
    context.console.data(f"Authorization: {value}")
    context.console.result({"name": "Authorization", "value": value})


def _header_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help="HTTP method of the request.")
    parser.add_argument("url", metavar="URL", help="URL of the request, or only its path and query.")
    _add_data(parser)


HEADER = Command(
    "header",
    "Print the Authorization header for a request that another program sends.",
    header,
    _header_arguments,
    details=('The header is valid for one request within 30 seconds: curl -H "$(amesh header GET URL)" URL',),
)
