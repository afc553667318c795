"""The meaning of a response to fetch: what a rejection means, and where a redirect leads."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import PayloadTooLarge, Run, spelled

from .doctor.answers import Meaning, meaning, rejects
from .terminal.lines import Shown, Styled
from .words import joined

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, as a person understands it.

    Attributes:
        url: the address that answered.
        followed: a sentence for each redirect that was followed.
        redirects_to: the address that a redirect names that was not followed; empty if there is none.
        redirect: what a redirect that was not followed means, and what to do; None if there is none.
        refusal: what a rejection means, and what to do; None if nothing was rejected.
    """

    url: str
    followed: tuple[str, ...]
    redirects_to: str
    redirect: Meaning | None
    refusal: Meaning | None

    @classmethod
    def of(cls, response: httpx.Response, *, own: str) -> Answer:
        """Return the meaning of a response.

        Args:
            response: the last response.
            own: device ID of this device.
        """
        requests = [one.request for one in (*response.history, response)]
        following = response.next_request
        return cls(
            url=shown(response.url),
            followed=tuple(_followed(before, after) for before, after in itertools.pairwise(requests)),
            redirects_to=shown(following.url) if following is not None else "",
            redirect=_redirect(response.request, following) if following is not None else None,
            refusal=_refusal(response, own),
        )

    def remarks(self, *, refusal: bool) -> list[Shown]:
        """Return lines for a person at a terminal.

        Args:
            refusal: False if an error says what the rejection means.
        """
        lines: list[Shown] = [Styled(text, "quiet") for text in self.followed]
        for found in (self.redirect, self.refusal if refusal else None):
            if found is not None:
                lines += [Styled(found[0], "warning"), Styled(found[1], "quiet")]
        return lines

    def to_json(self, spell: Callable[[Run], str]) -> dict[str, Any]:
        """Return the members for ``--json``."""
        found = self.redirect or self.refusal
        text = " ".join((found[0], spelled(found[1], spell))) if found is not None else None
        return {"url": self.url, "redirectsTo": self.redirects_to or None, "meaning": text}


def shown(url: httpx.URL) -> str:
    """Return an address without a user name and a password, fit to be shown."""
    return clean_line(str(url.copy_with(userinfo=b"")))


def _is_signed(request: httpx.Request) -> bool:
    return "Authorization" in request.headers  # httpx removes it at the first redirect to another origin


def _followed(before: httpx.Request, after: httpx.Request) -> str:
    if _is_signed(after):
        how = "signed again"
    else:
        how = "without a signature, because this is another origin" if _is_signed(before) else "without a signature"
    return f"Redirected to {shown(after.url)}, {how}.{_changed(before, after)}"


def _changed(before: httpx.Request, after: httpx.Request) -> str:
    """Return a sentence if a redirect changes the method, which leaves the body behind."""
    return f" The {before.method} becomes a {after.method} without a body." if after.method != before.method else ""


def _redirect(request: httpx.Request, following: httpx.Request) -> Meaning:
    to = shown(following.url)
    if following.url.scheme not in ("http", "https"):
        return (
            f"The server redirects to {to}, which is not an address of http or https.",
            "The redirect is not followed.",
        )
    changed = _changed(request, following)
    if _is_signed(following):
        return f"The server redirects to {to}.", f"To follow the redirect with a new signature, use -L.{changed}"
    return (
        f"The server redirects to {to}, which is another origin.",
        (
            f"To follow the redirect without a signature, use -L.{changed} To send a signed request there, run ",
            Run("fetch", shlex.quote(to)),
            ".",
        ),
    )


def _refusal(response: httpx.Response, own: str) -> Meaning | None:
    status = response.status_code
    if status < 400:
        return None
    if not _is_signed(response.request):
        return (
            "This request had no signature, because a redirect led it to another origin.",
            ("To send a signed request there, run ", Run("fetch", shlex.quote(shown(response.url))), "."),
        )
    try:
        body = json.loads(response.content)
    except (ValueError, RecursionError):
        body = None
    site = f"{response.url.scheme}://{response.url.netloc.decode('ascii')}"
    doctor = Run("doctor", shlex.quote(site))
    if status == PayloadTooLarge.status and rejects(status, body):
        return PayloadTooLarge.default_message, PayloadTooLarge.default_hint
    if rejects(status, body):
        text, hint = meaning(status, response.headers, body, own=own)
        return text, joined(hint, " To find the cause, run ", doctor, ".")
    if status == 401:
        return (
            "The server asks for credentials, but not for those of amesh (401).",
            (
                "Check that this address accepts signed requests, and that nothing in front of the server has its own login. To examine "
                "the server, run ",
                doctor,
                ".",
            ),
        )
    if status == 403:
        return (
            "The server did not reject the signature, and does not allow this request (403).",
            "The device may lack a permission that the address requires. A firewall or a proxy in front of the server can also be the cause.",
        )
    return None
