"""``manage.py amesh_enroll_token``: make a token with which machines enroll themselves here; show and withdraw tokens."""

import datetime as dt
import re
import time
from argparse import ArgumentParser
from typing import Any
from urllib.parse import urlsplit

from django.contrib.auth import get_user_model

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.conf import amesh_settings
from amesh_django.enrollment import tokens
from amesh_django.grantable import check_grantable
from amesh_django.management.base import AmeshCommand
from amesh_django.models import EnrollmentToken
from authmesh.commands.context import Context
from authmesh.commands.spec import Command as Spec
from authmesh.commands.terminal.errors import UsageProblem
from authmesh.commands.terminal.lines import Styled, facts
from authmesh.commands.words import counted, when
from authmesh.device.directory import check_name
from authmesh.protocol.allow_list import CONTROLLER
from authmesh.protocol.display import clean
from authmesh.protocol.encoding import format_time
from authmesh.protocol.enrollment import MAX_LIFE_SECONDS, MAX_USES
from authmesh.protocol.errors import InvalidInput, Run

ENROLL_VARIABLE = "AMESH_ENROLL_TOKEN"
DEFAULT_TTL = "1h"
_TTL = re.compile(r"([0-9]{1,7})([smhd])").fullmatch
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNCHANGED = "Nothing was changed."


def enroll_token(
    context: Context,
    *,
    name: str | None,
    scope: list[str],
    group: list[str],
    user: str | None,
    uses: int | None,
    ttl: str | None,
    expires_after: str | None,
    approved: bool,
    url: str | None,
    list: bool,
    withdraw: str | None,
) -> None:
    """Make a token, or do what one of the other options asks for."""
    given = {
        "--name": name,
        "--user": user,
        "--uses": uses,
        "--ttl": ttl,
        "--url": url,
        "--scope": scope or None,
        "--group": group or None,
        "--expires-after": expires_after,
        "--approved": approved or None,
    }
    making = [option for option, value in given.items() if value is not None]
    modes = ["--list"] * list + ["--withdraw"] * (withdraw is not None)
    if len(modes) > 1 or (modes and making):
        raise UsageProblem(
            f"{modes[0]} and {(modes[1:] + making)[0]} exclude each other. {_UNCHANGED}", hint="Omit one of them."
        )
    context.own_device()
    if list:
        _show(context)
    elif withdraw is not None:
        _withdraw(context, withdraw)
    elif name is None:
        raise UsageProblem(
            f"The name of the token is missing. {_UNCHANGED}", hint="Use --name NAME, or one of --list and --withdraw."
        )
    else:
        _make(
            context,
            name=check_name(name),
            scopes=scope,
            groups=group,
            user=user,
            uses=1 if uses is None else uses,
            lifetime=_seconds("--ttl", DEFAULT_TTL if ttl is None else ttl, MAX_LIFE_SECONDS),
            device_seconds=_seconds("--expires-after", expires_after, tokens.MAX_DEVICE_SECONDS)
            if expires_after is not None
            else None,
            approved=approved,
            url=url,
        )


def _make(
    context: Context,
    *,
    name: str,
    scopes: list[str],
    groups: list[str],
    user: str | None,
    uses: int,
    lifetime: int,
    device_seconds: int | None,
    approved: bool,
    url: str | None,
) -> None:
    if not 1 <= uses <= MAX_USES:
        raise UsageProblem(f"--uses must be an integer from 1 to {MAX_USES}. {_UNCHANGED}")
    try:
        check_grantable("scope", scopes)
        tokens.check_groups(groups)
    except InvalidInput as error:
        raise UsageProblem(error.message, hint=error.hint) from None
    address = amesh_settings().URL if url is None else url
    if address is None:
        raise UsageProblem(
            f"The address of this server is not known. {_UNCHANGED}",
            hint="Set AMESH['URL'] to the public address of amesh_django.urls, such as https://api.example/amesh/, or use --url URL.",
        )
    made = tokens.make(
        url=address if address.endswith("/") else f"{address}/",
        name=name,
        uses=uses,
        lifetime=lifetime,
        by=context.home.actor,
        scopes=scopes,
        groups=groups,
        user_id=_user_id(user),
        approved=approved,
        device_seconds=device_seconds,
    )
    console = context.console
    console.result({**_json(made.row), "url": address, "token": made.text, "environment": {ENROLL_VARIABLE: made.text}})
    console.say(
        Styled(f"An enrollment token for {counted(uses, 'machine')}: {clean(name)}", "title"),
        *facts(("Number", made.row.jti), ("Address", address), ("Valid until", _when(made.row.expires_at))),
        "",
        "Add this line to the environment of each machine. A machine enrolls itself before its first request to this server:",
        "",
    )
    console.data(f"{ENROLL_VARIABLE}={made.text}")
    console.say("")
    machines = "one machine" if uses == 1 else f"{uses} machines"
    console.warn(
        (
            f"Anyone who has this token can enroll up to {machines}, until it is used up or expires. Handle it like a password. To withdraw "
            "it, run ",
            Run("enroll-token", f"--withdraw {made.row.jti}"),
            ".",
        )
    )
    if urlsplit(address).scheme == "http" and urlsplit(address).hostname not in ("localhost", "127.0.0.1", "::1"):
        console.warn(
            "The address begins with http://, so what the machines send and receive there can be read on the way."
        )
    _warn_of_limit(context, uses)


def _warn_of_limit(context: Context, uses: int) -> None:
    allow_list = DatabaseAllowList()
    free = max(0, allow_list.controller_limit - allow_list.count(CONTROLLER))
    if free < uses:
        context.console.warn(
            f"The limit of this server leaves room for {counted(free, 'more controller')}. Raise AMESH['MAX_CONTROLLERS'] before the "
            "machines come."
        )


def _seconds(option: str, text: str, limit: int) -> int:
    found = _TTL(text.strip())
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= limit:
        raise UsageProblem(
            f"{option} must be a number with s, m, h or d, and at most {limit // 86400}d. {_UNCHANGED}",
            hint="Use a time such as 15m, 1h or 7d.",
        )
    return seconds


def _user_id(name: str | None) -> Any:
    if name is None:
        return None
    users = get_user_model()
    row = users._default_manager.filter(**{users.USERNAME_FIELD: name}).first()
    if row is None:
        raise UsageProblem(f"There is no user {name!r}. {_UNCHANGED}", hint="Use the user name of an existing user.")
    return row.pk


def _time(moment: dt.datetime) -> str:
    return format_time(moment.astimezone())  # naive if USE_TZ is off


def _when(moment: dt.datetime) -> str:
    return when(_time(moment))


def _json(row: EnrollmentToken) -> dict[str, Any]:
    return {
        "jti": row.jti,
        "name": row.name,
        "scopes": row.scopes,
        "groups": row.groups,
        "approved": row.approved,
        "deviceSeconds": row.device_seconds,
        "user": row.user.get_username() if row.user is not None else None,
        "uses": row.uses,
        "maxUses": row.max_uses,
        "createdAt": _time(row.created_at),
        "createdBy": row.created_by,
        "expiresAt": _time(row.expires_at),
        "withdrawnAt": _time(row.withdrawn_at) if row.withdrawn_at is not None else None,
        "state": tokens.state(row, time.time()),
    }


def _show(context: Context) -> None:
    rows, console = tokens.every(), context.console
    console.result({"tokens": [_json(row) for row in rows]})
    if not rows:
        console.say(("There are no enrollment tokens. To make one, run ", Run("enroll-token", "--name NAME"), "."))
    for row in rows:
        state = tokens.state(row, time.time())
        shown = {
            "open": f"open until {_when(row.expires_at)}",
            "used_up": "used up",
            "expired": f"expired {_when(row.expires_at)}",
            "withdrawn": "withdrawn",
            "changed": "changed outside Django; no machine can enroll with it",
            "void": "void: this server has another identity or secret of the seal than when the token was made",
        }[state]
        console.say(
            Styled(clean(row.name), {"open": "good", "changed": "bad"}.get(state, "plain")),  # type: ignore[arg-type]
            *facts(
                ("Number", row.jti),
                ("State", shown),
                ("Machines", f"{row.uses} of {row.max_uses}"),
                ("Scopes", ", ".join(clean(scope) for scope in row.scopes) or "none"),
                ("Groups", ", ".join(clean(group) for group in row.groups) or "none"),
                ("User", clean(row.user.get_username()) if row.user is not None else "none"),
            ),
        )


def _withdraw(context: Context, number: str) -> None:
    row = tokens.withdraw(tokens.match(number).jti, by=context.home.actor)
    context.console.say(
        Styled(f"Withdrawn: {clean(row.name)} ({row.jti}). No further machine can enroll with it.", "good"),
        f"{counted(row.uses, 'machine')} enrolled with it. To stop trusting one, revoke it.",
    )
    context.console.result(_json(row))


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--name", metavar="NAME", help="Name of the token, for people.")
    parser.add_argument(
        "--scope",
        metavar="S",
        action="append",
        default=[],
        help="Scope that each machine gets. May be given several times.",
    )
    parser.add_argument(
        "--group",
        metavar="G",
        action="append",
        default=[],
        help="Group that each machine joins. May be given several times.",
    )
    parser.add_argument(
        "--approved",
        action="store_true",
        help="The machines need no approval, although AMESH['REQUIRE_APPROVAL'] is set.",
    )
    parser.add_argument(
        "--expires-after",
        metavar="TIME",
        help="Life of the key of each machine, such as 90d. A rotation renews it. Defaults to AMESH['MAX_KEY_AGE_DAYS'].",
    )
    parser.add_argument("--user", metavar="U", help="Name of the Django user as whom the machines act.")
    parser.add_argument(
        "--uses", metavar="N", type=int, help=f"How many machines may enroll, up to {MAX_USES}. Defaults to 1."
    )
    parser.add_argument(
        "--ttl",
        metavar="TIME",
        help=f"Lifetime of the token: a number with s, m, h or d, at most 30d. Defaults to {DEFAULT_TTL}.",
    )
    parser.add_argument(
        "--url",
        metavar="URL",
        help="Public address of amesh_django.urls on this server, such as https://api.example/amesh/. Defaults to AMESH['URL'].",
    )
    parser.add_argument("--list", action="store_true", help="Show the tokens: open, used up, expired, withdrawn.")
    parser.add_argument(
        "--withdraw", metavar="JTI", help="Withdraw a token, named by its number or by a unique beginning of it."
    )


ENROLL_TOKEN = Spec(
    "enroll-token",
    "Make a token with which machines enroll themselves at this server, as controllers; no person is needed at the machines.",
    enroll_token,
    _arguments,
    details=(
        "The token is shown once and is not stored. Each machine makes its own key and proves that it has the token, which it never sends.",
    ),
)


class Command(AmeshCommand):
    spec = ENROLL_TOKEN
