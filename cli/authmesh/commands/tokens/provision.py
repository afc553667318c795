"""provision: make a bootstrap token, and wait for the device that comes with it; see, serve and withdraw tokens."""

from __future__ import annotations

import re

from authmesh.device.directory import check_name
from authmesh.device.tokens import StoredToken, TokenStore
from authmesh.protocol.display import clean
from authmesh.protocol.encoding import format_time
from authmesh.protocol.pairing.errors import TokenExpired, TokenWithdrawn
from authmesh.protocol.pairing.token import MAX_LIFE_SECONDS, build_token, verify_token

from ..relays import RELAY, V1, relay_address
from ..spec import Command, Context, Option
from ..terminal.console import Line, UsageProblem, facts
from ..words import when
from .awaiting import await_devices
from .words import show_tokens, time_of, token_json

DEFAULT_TTL = "1h"
_TTL = re.compile(r"([0-9]{1,5})([smh])").fullmatch
_UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_ttl(text: str) -> int:
    """How long a token lives, in seconds.

    Raises:
        UsageProblem: not a number with s, m or h, or not from one second to 24 hours.
    """
    found = _TTL(text.strip())
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= MAX_LIFE_SECONDS:
        raise UsageProblem("--ttl is a number with s, m or h, such as 90s, 15m or 1h; 24h at most.")
    return seconds


def provision(
    context: Context,
    *,
    name: str | None,
    ttl: str | None,
    relay: str | None,
    no_wait: bool,
    resume: bool,
    list: bool,
    withdraw: str | None,
    v1: bool,
    output: str | None,
) -> None:
    """Make a token and serve it, or do one of the other things with tokens."""
    if output == "json":
        context.console.as_json = True
    modes = [mode for mode, given in (("--resume", resume), ("--list", list), ("--withdraw", withdraw)) if given]
    making = [option for option, given in (("--name", name), ("--ttl", ttl), ("--relay", relay)) if given is not None]
    making += ["--no-wait"] * no_wait
    if len(modes) > 1 or (modes and making):
        raise UsageProblem(f"{modes[0]} does not go together with {(modes[1:] + making)[0]}.")
    if v1 and (list or withdraw or no_wait):
        raise UsageProblem("--v1 is for waiting: it says which devices are accepted then. Say it with --resume.")
    if list:
        show_tokens(context)
    elif withdraw is not None:
        _withdraw(context, withdraw)
    elif resume:
        _resume(context, v1=v1)
    elif name is None:
        raise UsageProblem("Say what the new device is to be called: --name NAME. Or --resume, --list, --withdraw.")
    else:
        _make(
            context, name=check_name(name), seconds=parse_ttl(ttl or DEFAULT_TTL), relay=relay, wait=not no_wait, v1=v1
        )


def _make(context: Context, *, name: str, seconds: int, relay: str | None, wait: bool, v1: bool) -> None:
    address = relay_address(relay)
    device, console = context.own_device(), context.console
    now = context.now().timestamp()
    text = build_token(
        public_key=device.identity.public_key,
        name=name,
        relay=address,
        issued_at=int(now),
        lifetime=seconds,
        sign=device.sign,
    )
    store = TokenStore(device.path)
    token = store.add(verify_token(text, now=now, controller_key=device.identity.public_key), now)
    document = {**token_json(token, now), "token": text, "environment": {"AMESH_BOOTSTRAP_TOKEN": text}}
    if wait:
        console.step({"step": "token", **document})
    else:
        console.result(document)
    console.say(
        Line(f"A bootstrap token for {clean(name)}", "title"),
        *facts(
            ("Number", token.jti),
            ("Relay", address),
            ("Good until", when(format_time(time_of(token.expires_at)))),
        ),
        "",
        "Put this line into the environment of the new device. It enrols itself with it, once:",
        "",
    )
    console.data(f"AMESH_BOOTSTRAP_TOKEN={text}")
    console.say("")
    console.warn(
        "Whoever has this token can enrol one device in place of yours, until it is used or expires. Hand it over as you would a "
        f"password. To take it back: {context.command('provision')} --withdraw {token.jti}"
    )
    if not wait:
        console.say(
            f"Nobody waits for the device yet. Before it comes, run: {context.command('provision')} --resume",
        )
        return
    await_devices(context, [token], v1=v1)
    final = store.get(token.jti)
    if final.kept == "withdrawn":
        raise TokenWithdrawn(f"The token for {clean(name)} was withdrawn. Nobody has used it.")
    if final.kept == "open":
        raise TokenExpired(f"Nobody came with the token for {clean(name)} in time, and it has expired. Make a new one.")


def _resume(context: Context, *, v1: bool) -> None:
    device, now = context.own_device(), context.now().timestamp()
    awaited = [token for token in TokenStore(device.path).tidy(now) if token.is_awaited(now)]
    if not awaited:
        context.console.say("No token is open.")
        context.console.step({"step": "done"})
        return
    await_devices(context, awaited, v1=v1)
    context.console.say("No token is open any more.")
    context.console.step({"step": "done"})


def _withdraw(context: Context, prefix: str) -> None:
    device, now = context.own_device(), context.now().timestamp()
    store = TokenStore(device.path)
    token: StoredToken = store.withdraw(store.match(prefix).jti, now)
    context.console.say(
        Line(f"Withdrawn: the token for {clean(token.name)} ({token.jti}). Nobody can enrol with it any more.", "good")
    )
    context.console.result(token_json(token, now))


PROVISION = Command(
    "provision",
    "Make a token with which a device enrols itself, and wait for it; nobody needs to sit there.",
    provision,
    (
        Option(("--name",), "What the new device will be called.", metavar="NAME"),
        Option(
            ("--ttl",),
            f"How long the token lives: a number with s, m or h, 24h at most; {DEFAULT_TTL} if left out.",
            metavar="TIME",
        ),
        RELAY,
        Option(("--no-wait",), "Make the token and end; --resume waits for the device later.", "flag"),
        Option(("--resume",), "Wait for the devices of all open tokens.", "flag"),
        Option(("--list",), "Show the tokens: open, used (by whom), expired, withdrawn.", "flag"),
        Option(
            ("--withdraw",),
            "Take a token back: its number, or as much of its beginning as is unique.",
            metavar="NUMBER",
        ),
        V1,
        Option(("--output",), "json: the same as --json.", choices=("text", "json")),
    ),
    details=(
        "The device that comes is stored as target: this device may authenticate to it, and it not to this one. A token is good for "
        "one device.",
        "Ctrl-C leaves the token open. With --json each step is one line; --list, --withdraw and --no-wait print one document.",
    ),
)
