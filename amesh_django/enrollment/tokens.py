"""The enrollment tokens of this server: made, found, checked, counted, withdrawn.

Rows are written only while the seal of the allow list is locked, so that a use is never counted twice or lost.
"""

from __future__ import annotations

import datetime as dt
import difflib
import hmac
import json
import logging
import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from django.utils import timezone
from django.utils.translation import gettext as _

from amesh_django.audit.recording import record
from amesh_django.models import AuditEvent, EnrollmentToken
from amesh_django.server import server_device
from amesh_django.trust import current_list
from amesh_django.trust.chain import Actor
from amesh_django.trust.change import Change
from amesh_django.trust.damage import each_row
from amesh_django.trust.database import database, insert_rows
from amesh_django.trust.keys import SealKeys, all_seal_keys, seal_keys
from amesh_django.trust.sealing import actor, row_texts, storable
from authmesh.protocol.display import clean
from authmesh.protocol.enrollment import MAX_LIFE_SECONDS, MAX_USES, build_token, token_secret
from authmesh.protocol.enrollment_errors import (
    EnrollmentTokenExpired,
    EnrollmentTokenUsedUp,
    EnrollmentTokenWithdrawn,
    InvalidEnrollmentToken,
)
from authmesh.protocol.errors import AmeshError, InvalidInput, Run
from authmesh.protocol.multiset import encode_row

logger = logging.getLogger("amesh_django.enrollment")

State = Literal["open", "used_up", "expired", "withdrawn", "changed", "void"]

#: Longest life of the key of a machine that a token may set, in seconds: 10 years.
MAX_DEVICE_SECONDS = 10 * 365 * 86400

#: Columns under the MAC, in the order in which they are hashed.
_COLUMNS = (
    "jti",
    "name",
    "scopes_json",
    "groups_json",
    "user_id",
    "max_uses",
    "uses",
    "created_at",
    "created_by",
    "expires_at",
    "approved",
    "withdrawn_at",
    "device_seconds",
    "key_id",
)


class EnrollmentTokenNotFound(AmeshError):
    """No token has this number, or more than one number begins with it."""

    code = "enrollment_token_not_found"
    default_message = "No enrollment token has this number, or more than one begins with it. Nothing was changed."
    default_hint = ("To see the tokens, run ", Run("enroll-token", "--list"), ".")


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was just made.

    Attributes:
        row: its row.
        text: the token itself, which is not stored.
    """

    row: EnrollmentToken
    text: str = field(repr=False)


def _mac(row: EnrollmentToken, keys: SealKeys) -> str:
    texts = row_texts([getattr(row, name) for name in _COLUMNS])
    return hmac.digest(keys.tokens, encode_row("amesh-enrollment-token-v1", keys.owner, *texts), "sha256").hex()


def _key_id(keys: SealKeys) -> str:
    """Return the name of a secret of the seal together with the identity of this server, whose key is in each token."""
    issuer = server_device().identity.device_id
    return hmac.digest(keys.tokens, f"amesh-enrollment-key-v1\n{issuer}".encode(), "sha256").hex()[:16]


def _is_void(row: EnrollmentToken) -> bool:
    """Return True if this server had another identity or secret of the seal when the token was made."""
    return all(_key_id(keys) != row.key_id for keys in all_seal_keys())


def keys_of(row: EnrollmentToken) -> SealKeys | None:
    """Return the keys with which amesh wrote the row, or None if it did not. Takes constant time for each.

    While the secret of the seal is being replaced, a token keeps the keys that it was made with: its secret is derived from them.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    mac = str(row.mac).encode("utf-8", "replace")
    return next((keys for keys in all_seal_keys() if hmac.compare_digest(_mac(row, keys).encode(), mac)), None)


def state(row: EnrollmentToken, now: float, among: Collection[SealKeys] | None = None) -> State:
    """Return the state of a token.

    Args:
        now: Unix seconds.
        among: the keys that the token may have. Defaults to all keys of the seal.
    """
    if _is_void(row):
        return "void"
    keys = keys_of(row)
    if keys is None or (among is not None and keys not in among):
        return "changed"
    if row.withdrawn_at is not None:
        return "withdrawn"
    if now >= row.expires_at.timestamp():
        return "expired"
    return "used_up" if row.uses >= row.max_uses else "open"


def check(row: EnrollmentToken | None, *, jti: str, now: float, keys: Collection[SealKeys]) -> EnrollmentToken:
    """Return the row of a token with which another machine may enroll.

    Args:
        keys: the keys under which the machine has proved that it has the token.

    Raises:
        InvalidEnrollmentToken: there is none, or it was changed outside Django.
        EnrollmentTokenWithdrawn, EnrollmentTokenExpired, EnrollmentTokenUsedUp: it cannot be used any more.
    """
    if row is None or row.jti != jti:  # a collation may ignore case
        raise InvalidEnrollmentToken(detail="no such token")
    found = state(row, now, keys)
    if found == "changed":
        logger.critical("The enrollment token %s was changed outside Django. No machine can enroll with it.", row.jti)
        raise InvalidEnrollmentToken(detail="changed outside Django")
    if found == "void":
        logger.warning("The enrollment token %s was made with another identity or secret of the seal.", row.jti)
        raise InvalidEnrollmentToken(detail="made with another identity or secret of the seal")
    if found == "withdrawn":
        raise EnrollmentTokenWithdrawn()
    if found == "expired":
        raise EnrollmentTokenExpired()
    if found == "used_up":
        raise EnrollmentTokenUsedUp()
    return row


def find(jti: str) -> EnrollmentToken | None:
    """Return the row of a token; None if there is none, or if it was damaged so that it cannot be read. It is not checked."""
    return next((row for _pk, row in each_row(EnrollmentToken.objects.using(database()).filter(jti=jti), 1)), None)


def under_old_secret(now: float) -> list[EnrollmentToken]:
    """Return the open tokens that no machine can use any more once the old secret of the seal is removed from the settings."""
    first = seal_keys()
    return [row for row in every() if keys_of(row) != first and state(row, now) == "open"]


def every() -> list[EnrollmentToken]:
    """Return all rows that can be read, the newest first. They are not checked."""
    rows = each_row(EnrollmentToken.objects.using(database()).select_related("user"))
    return [row for _pk, row in rows if row is not None]


def match(number: str) -> EnrollmentToken:
    """Return the row whose number is *number* or begins with it.

    Raises:
        EnrollmentTokenNotFound: there is none, or more than one.
    """
    found = [row for row in every() if row.jti.startswith(number)] if number else []
    exact = [row for row in found if row.jti == number]
    if len(exact or found) != 1:
        raise EnrollmentTokenNotFound()
    return (exact or found)[0]


def open_count(now: float) -> int:
    """Return the number of tokens with which a machine can enroll.

    Args:
        now: Unix seconds.

    Raises:
        IdentityMissing, DirectoryError, KeyStoreError: the keys of the seal cannot be used.
    """
    return sum(state(row, now) == "open" for row in every())


def author(row: EnrollmentToken) -> Actor:
    """Return the author in the audit log of what a machine with this token changes. The number comes first: a name may be long."""
    return Actor(f"enrollment token {row.jti} ({row.name})", "token")


def machines(row: EnrollmentToken) -> list[str]:
    """Return the device IDs of the machines that enrolled with a token, in that order, as the audit log says."""
    events = AuditEvent.objects.using(database()).filter(
        kind=AuditEvent.Kind.TRUST, actor__startswith=f"enrollment token {row.jti}"
    )
    return [event.device_id for _pk, event in each_row(events.order_by("id").only("device_id")) if event is not None]


def check_groups(names: Iterable[str]) -> None:
    """Check the names of groups before a token is made.

    Raises:
        InvalidInput: there is no such group.
        AllowListError: the list does not match its seal.
    """
    known = current_list().snapshot().groups.scopes
    for name in names:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1)
        raise InvalidInput(
            _("There is no group %(name)s. Nothing was changed.") % {"name": clean(name)},
            hint=_("Did you mean %(name)s?") % {"name": clean(close[0])}
            if close
            else _("Known: %(names)s.") % {"names": ", ".join(map(clean, known)) or _("none")},
        )


def make(
    *,
    url: str,
    name: str,
    uses: int,
    lifetime: int,
    by: str,
    scopes: Sequence[str] = (),
    groups: Sequence[str] = (),
    user_id: Any = None,
    approved: bool = False,
    device_seconds: int | None = None,
) -> NewToken:
    """Make a token.

    Args:
        url: public address of ``amesh_django.urls`` on this server, with a slash at the end.
        name: name of the token, for people.
        uses: number of machines that may enroll, 1 to 10,000.
        lifetime: seconds, at most 30 days.
        by: who makes it.
        scopes: scopes that each machine gets.
        groups: groups that each machine joins.
        user_id: primary key of the Django user as whom the machines act.
        approved: True if the machines need no approval.
        device_seconds: seconds after which the key of each machine expires. None sets no limit beside ``MAX_KEY_AGE_DAYS``.

    Raises:
        InvalidInput: a value is out of range, or *url* is not valid.
        IdentityMissing, DirectoryError, KeyStoreError: this server has no identity, or its keys cannot be used.
    """
    if not 1 <= uses <= MAX_USES:
        raise InvalidInput(_("A token is for 1 to 10,000 machines. No token was made."))
    if not 1 <= lifetime <= MAX_LIFE_SECONDS:
        raise InvalidInput(_("The lifetime of an enrollment token is at most 30 days. No token was made."))
    if device_seconds is not None and not 1 <= device_seconds <= MAX_DEVICE_SECONDS:
        raise InvalidInput(_("The keys of the machines may live for 1 second to 10 years. No token was made."))
    device, keys = server_device(), seal_keys()
    created = timezone.now().replace(microsecond=0)
    row = EnrollmentToken(
        jti=f"et_{secrets.token_hex(16)}",
        name=storable(name),
        scopes_json=json.dumps(sorted(set(scopes))),
        groups_json=json.dumps(sorted(set(groups))),
        user_id=user_id,
        max_uses=uses,
        created_at=created,
        created_by=actor(by),
        expires_at=created + dt.timedelta(seconds=lifetime),
        approved=approved,
        device_seconds=device_seconds,
        key_id=_key_id(keys),
    )
    text = build_token(
        url=url,
        public_key=device.identity.public_key,
        jti=row.jti,
        expires_at=int(row.expires_at.timestamp()),
        secret=token_secret(keys.enrollment, row.jti),
        name=row.name,
    )
    row.mac = _mac(row, keys)
    insert_rows(EnrollmentToken.objects.using(database()), [row], 1)
    record(AuditEvent.Kind.TOKEN_MADE, by=by, subject=row.name, data=_described(row))
    logger.info("The enrollment token %s for %d machines was made by %s.", row.jti, uses, row.created_by or "unknown")
    return NewToken(row, text)


def count_use(row: EnrollmentToken) -> None:
    """Count one more use. Call it only while the seal of the allow list is locked."""
    _save(row, "uses", row.uses + 1)


def withdraw(jti: str, *, by: str) -> EnrollmentToken:
    """Withdraw a token: no further machine can enroll with it. The machines that have are not changed.

    Args:
        jti: number of the token.
        by: who withdraws it.

    Raises:
        EnrollmentTokenNotFound: there is no such token.
        InvalidEnrollmentToken: it was changed outside Django, and cannot be used anyway.
        AllowListError: the allow list cannot be locked.
    """

    def work(pending: Change) -> EnrollmentToken:
        row = find(jti)
        if row is None:
            raise EnrollmentTokenNotFound()
        if _is_void(row):
            raise InvalidEnrollmentToken(
                "This token was made with another identity or secret of the seal, so no machine can enroll with it. Nothing was changed.",
                hint="Nothing needs to be done.",
            )
        if keys_of(row) is None:
            raise InvalidEnrollmentToken(
                "This token was changed outside Django, so no machine can enroll with it. Nothing was changed.",
                hint="Delete its row, and find out who changed it.",
            )
        if row.withdrawn_at is None:
            _save(row, "withdrawn_at", timezone.now().replace(microsecond=0))
        return row

    row = current_list().change(by, work)
    record(AuditEvent.Kind.TOKEN_WITHDRAWN, by=by, subject=row.name, data=_described(row))
    logger.info("The enrollment token %s was withdrawn by %s.", row.jti, actor(by) or "unknown")
    return row


def _described(row: EnrollmentToken) -> dict[str, Any]:
    """Return what the audit log says about a token."""
    return {"jti": row.jti, "scopes": row.scopes, "groups": row.groups, "uses": row.uses, "maxUses": row.max_uses}


def _save(row: EnrollmentToken, column: str, value: Any) -> None:
    """Change a column of a genuine row, under the keys that it has."""
    keys = keys_of(row)
    if keys is None:
        raise InvalidEnrollmentToken(detail="changed outside Django")
    setattr(row, column, value)
    row.mac = _mac(row, keys)
    row.save(using=database(), update_fields=[column, "mac"])
