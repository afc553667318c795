"""Pulling: a server asks its hub for changes by itself, and the hub answers (docs/fleet.md). Both ends are here.

The question is signed by the server. The hub's list has the server as a target, so the view of the hub accepts targets, and no other view
does. The answer is a message of the feed, signed by the hub over its exact bytes and the nonce of the question.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import Any, Final, NamedTuple

import httpx
from django.conf import settings as django_settings

from amesh_django.models import Server
from amesh_django.server import server_device
from amesh_django.trust.database import database
from amesh_django.trust.verified import KnownDevice
from amesh_django.verification import VerifiedDevice
from authmesh.client.signing import NONCE_BYTES, Signer, sign_request
from authmesh.protocol.encoding import b64url_encode
from authmesh.protocol.errors import AllowListIntegrityFailure, AmeshError, DirectoryError, KeyStoreError
from authmesh.protocol.fleet.errors import MalformedFeed, NotFollowing, UnverifiedMessage, WrongAudience
from authmesh.protocol.fleet.feed import MAX_MESSAGE_BYTES, PULL_PATH, SIGNATURE_HEADER, FeedMessage
from authmesh.protocol.fleet.pull import PullQuestion, sign_answer, verify_answer

from . import posting
from .feed import message_for
from .heads import note_ahead
from .receiving import apply_message
from .servers import is_genuine, is_loopback

#: Seconds for one question. The list of a hub with 100,000 revocations takes its time.
_TOTAL_SECONDS: Final = 20.0
#: Questions in a row, if a hub has more to say than one message holds.
_MAX_QUESTIONS = 50


# --- at the hub ---


def answer(value: Any, *, asker: VerifiedDevice, nonce: str, now: float) -> tuple[bytes, str]:
    """Return the exact bytes of the answer to a server, and the value of its header ``Amesh-Signature``.

    A server that is paused is answered, too: it asks because it would not know of a revocation otherwise.

    Args:
        value: the JSON value of the question.
        asker: the target that signed the request.
        nonce: nonce of the request, as in its header.
        now: Unix seconds.

    Raises:
        MalformedFeed: it is not a question.
        WrongAudience: it is meant for another hub.
        NotFollowing: no server of this hub has this device ID, or its row was changed outside Django.
        AllowListIntegrityFailure, AllowListUnavailable: this hub cannot say what its list is now.
    """
    asked = PullQuestion.from_json(value)
    try:
        device = server_device()
        own = device.identity.device_id
        if asked.audience != own:
            raise WrongAudience(
                "The question is meant for another hub.", device_id=asker.device_id, device_name=asker.friendly_name
            )
        row = Server.objects.using(database()).filter(device_id=asker.device_id).first()
        if row is None or not is_genuine(row):
            raise NotFollowing(device_id=asker.device_id, device_name=asker.friendly_name)
        message = message_for(row, epoch=asked.epoch, after=asked.after, now=now)
        if asked.epoch == message.epoch and asked.after > message.head:
            note_ahead(row, message.epoch)
        body = json.dumps(message.to_json(), separators=(",", ":")).encode()
        return body, sign_answer(body, issuer=own, audience=asker.device_id, nonce=nonce, sign=device.sign)
    except (KeyStoreError, DirectoryError) as error:
        raise AllowListIntegrityFailure(error.message, hint=error.hint, reason=error.code) from error


# --- at a server ---


class NoAnswer(AmeshError):
    """The hub did not answer, or refused to."""

    code = "no_answer_of_the_hub"
    default_message = "The hub did not answer."
    default_hint = "Check that the hub runs and that this server can reach it."


class HubIsAway(NoAnswer):
    """Nothing answered, or a proxy said that the hub is down. It may be back at any moment."""


class Followed(NamedTuple):
    """A hub that can be asked.

    Attributes:
        device: the hub in the allow list.
        public_key: its key, 33 bytes.
        url: address of its ``amesh/``, from its last message.
        epoch, applied: what this server has of its list.
    """

    device: KnownDevice
    public_key: bytes
    url: str
    epoch: str
    applied: int


def pull(hub: Followed, *, now: float) -> None:
    """Ask a hub for all that this server lacks, and apply it.

    Args:
        hub: the hub.
        now: Unix seconds.

    Raises:
        NoAnswer: the hub cannot be reached, or refuses to answer.
        UnverifiedMessage: the hub has not signed the answer to this question. Nothing of it was applied.
        AmeshError: the answer cannot be applied, as for :func:`~amesh_django.fleet.receiving.apply_message`.
    """
    _check_address(hub.url)
    device = server_device()
    epoch, applied = hub.epoch, hub.applied
    for _question in range(_MAX_QUESTIONS):
        message = ask(hub, device, epoch=epoch, after=applied)
        done = apply_message(message, hub.device, now=now)
        if done.needs_list and not message.revocations:
            if not epoch:
                return
            epoch, applied = "", 0  # a server that knows no epoch gets the whole list
            continue
        if (done.epoch, done.applied) == (epoch, applied) or done.applied >= message.head:
            return  # it has all, or the rest must wait
        epoch, applied = done.epoch, done.applied


def _check_address(url: str) -> None:
    if not (url.startswith("https://") or is_loopback(url) or django_settings.DEBUG):
        raise NoAnswer(
            "The address of the hub begins with http://, so anyone in between could read the answer. It was not asked.",
            hint="At the hub, set AMESH['URL'] to an address that begins with https://.",
        )


def ask(hub: Followed, device: Signer, *, epoch: str, after: int) -> FeedMessage:
    """Ask a hub once, and return its answer, which is verified.

    Args:
        hub: the hub.
        device: this server.
        epoch: epoch of the hub's list that this server knows; empty if it knows none.
        after: serial up to which it has applied all.

    Raises:
        NoAnswer, UnverifiedMessage: as for :func:`pull`.
    """
    own = device.identity.device_id
    question = json.dumps(PullQuestion(hub.device.device_id, epoch, after).to_json()).encode()
    body, signature, nonce = _post(f"{hub.url}{PULL_PATH}", question, device)
    verify_answer(
        body,
        signature,
        issuer=hub.device.device_id,
        audience=own,
        nonce=nonce,
        issuer_key=hub.public_key,
    )
    try:
        message = FeedMessage.from_json(json.loads(body))
    except (ValueError, RecursionError, MalformedFeed):
        raise UnverifiedMessage("The answer of the hub is not a message of the feed. Nothing was changed.") from None
    if (message.issuer, message.audience) != (hub.device.device_id, own):
        raise UnverifiedMessage("The answer of the hub is meant for another server. Nothing was changed.")
    return message


def _post(url: str, body: bytes, device: Signer) -> tuple[bytes, str, str]:
    """Send a question. Return the body of the answer, its signature, and the nonce of the question.

    Raises:
        NoAnswer: there is no complete answer in time, or it is not 200.
    """
    nonce = b64url_encode(os.urandom(NONCE_BYTES))
    header = sign_request(
        device,
        method="POST",
        target=httpx.URL(url).raw_path.decode("ascii"),
        body_hash=hashlib.sha256(body).hexdigest(),
        now=time.time(),
        nonce=nonce,
    )
    headers = {"Authorization": header, "Content-Type": "application/json"}
    try:
        found = posting.post(url, body, headers=headers, seconds=_TOTAL_SECONDS, max_bytes=MAX_MESSAGE_BYTES)
    except posting.NoAnswer as error:
        raise HubIsAway(str(error)) from None
    if found.status != 200:
        code, kind = _code(found.body), HubIsAway if found.status >= 500 else NoAnswer
        raise kind(f"The hub answered {found.status}{f' ({code})' if code else ''}.")
    return found.body, found.headers.get(SIGNATURE_HEADER.lower(), ""), nonce


def _code(body: bytes) -> str:
    """Return the code in a refusal, or an empty text. Nothing signed it, so it is only shown."""
    try:
        found = json.loads(body[:1000])
    except (ValueError, RecursionError):
        return ""
    code = found.get("error") if isinstance(found, dict) else None
    return code if isinstance(code, str) and code.isidentifier() and len(code) <= 64 else ""
