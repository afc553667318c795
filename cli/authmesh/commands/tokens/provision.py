"""provision: make a bootstrap token, and wait for the device that uses it; show, serve and withdraw tokens."""

from __future__ import annotations

import re
from argparse import ArgumentParser

from authmesh.device.directory import check_name
from authmesh.device.tokens import TOKEN_VARIABLE, StoredToken, TokenStore
from authmesh.protocol.display import clean
from authmesh.protocol.errors import Run
from authmesh.protocol.pairing.token import MAX_LIFE_SECONDS, build_token, verify_token
from authmesh.protocol.pairing.token_errors import TokenExpired, TokenWithdrawn

from ..context import Context
from ..relays import add_relay, add_v1, relay_address
from ..spec import Command
from ..terminal.errors import UsageProblem
from ..terminal.lines import Styled, facts
from .awaiting import await_devices
from .words import show_tokens, shown_time, token_json

DEFAULT_TTL = "1h"
_TTL = re.compile(r"([0-9]{1,5})([smh])").fullmatch
_UNITS = {"s": 1, "m": 60, "h": 3600}
_UNCHANGED = "Nothing was changed."


def parse_ttl(text: str) -> int:
    """Return the lifetime of a token in seconds.

    Raises:
        UsageProblem: not a number with s, m or h, or not from one second to 24 hours.
    """
    found = _TTL(text.strip())
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= MAX_LIFE_SECONDS:
        raise UsageProblem(
            f"--ttl must be a number with s, m or h, and at most 24h. {_UNCHANGED}",
            hint="Use a time such as 90s, 15m or 1h.",
        )
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
    """Make a token and serve it, or do what one of the other options asks for."""
    if output == "json":
        context.console.as_json = True
    modes = [mode for mode, given in (("--resume", resume), ("--list", list), ("--withdraw", withdraw)) if given]
    making = [option for option, given in (("--name", name), ("--ttl", ttl), ("--relay", relay)) if given is not None]
    making += ["--no-wait"] * no_wait
    if len(modes) > 1 or (modes and making):
        other = (modes[1:] + making)[0]
        raise UsageProblem(f"{modes[0]} and {other} exclude each other. {_UNCHANGED}", hint="Omit one of them.")
    if v1 and (list or withdraw or no_wait):
        raise UsageProblem(
            f"--v1 is for waiting: it accepts older devices. {_UNCHANGED}",
            hint="Omit --v1 here, and use it with --resume.",
        )
    if list:
        show_tokens(context)
    elif withdraw is not None:
        _withdraw(context, withdraw)
    elif resume:
        _resume(context, v1=v1)
    elif name is None:
        raise UsageProblem(
            f"The name of the new device is missing. {_UNCHANGED}",
            hint="Use --name NAME, or one of --resume, --list and --withdraw.",
        )
    else:
        seconds = parse_ttl(DEFAULT_TTL if ttl is None else ttl)
        _make(context, name=check_name(name), seconds=seconds, relay=relay, wait=not no_wait, v1=v1)


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
    document = {**token_json(token, now), "token": text, "environment": {TOKEN_VARIABLE: text}}
    if wait:
        console.step({"step": "token", **document})
    else:
        console.result(document)
    console.say(
        Styled(f"A bootstrap token for {clean(name)}", "title"),
        *facts(("Number", token.jti), ("Relay", address), ("Valid until", shown_time(token.expires_at))),
        "",
        "Add this line to the environment of the new device. The device enrolls itself with it, once:",
        "",
    )
    console.data(f"{TOKEN_VARIABLE}={text}")
    console.say("")
    console.warn(
        (
            "Anyone who has this token can enroll one device in place of yours, until the token is used or expires. Handle it like a "
            "password. To withdraw it, run ",
            Run("provision", f"--withdraw {token.jti}"),
            ".",
        )
    )
    if not wait:
        console.say(("Nothing waits for the device yet. Before it starts, run ", Run("provision", "--resume"), "."))
        return
    await_devices(context, [token], v1=v1)
    final = store.get(token.jti)
    if final.kept == "withdrawn":
        raise TokenWithdrawn(f"The token for {clean(name)} was withdrawn. No device has used it.")
    if final.kept == "open":
        raise TokenExpired(
            f"The token for {clean(name)} has expired. No device has used it.",
            hint=("To make a new one, run ", Run("provision", "--name NAME"), "."),
        )


def _resume(context: Context, *, v1: bool) -> None:
    device, now = context.own_device(), context.now().timestamp()
    awaited = [token for token in TokenStore(device.path).tidy(now) if token.is_awaited(now)]
    if awaited:
        await_devices(context, awaited, v1=v1)
    context.console.say("No token is open any more." if awaited else "No token is open.")
    context.console.step({"step": "done"})


def _withdraw(context: Context, prefix: str) -> None:
    device, now = context.own_device(), context.now().timestamp()
    store = TokenStore(device.path)
    token: StoredToken = store.withdraw(store.match(prefix).jti, now)
    withdrawn = f"Withdrawn: the token for {clean(token.name)} ({token.jti}). No device can enroll with it any more."
    context.console.say(Styled(withdrawn, "good"))
    context.console.result(token_json(token, now))


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--name", metavar="NAME", help="Name that the new device will have.")
    parser.add_argument(
        "--ttl",
        metavar="TIME",
        help=f"Lifetime of the token: a number with s, m or h, at most 24h. Defaults to {DEFAULT_TTL}.",
    )
    add_relay(parser)
    parser.add_argument(
        "--no-wait", action="store_true", help="Make the token and exit. Wait for the device later with --resume."
    )
    parser.add_argument("--resume", action="store_true", help="Wait for the devices of all open tokens.")
    parser.add_argument(
        "--list", action="store_true", help="Show the tokens: open, used (and by which device), expired, withdrawn."
    )
    parser.add_argument(
        "--withdraw", metavar="NUMBER", help="Withdraw a token, named by its number or by a unique beginning of it."
    )
    add_v1(parser)
    parser.add_argument("--output", choices=("text", "json"), help="json is the same as --json.")


PROVISION = Command(
    "provision",
    "Make a token with which a new device enrolls itself, and wait for the device; no person is needed there.",
    provision,
    _arguments,
    details=(
        "The new device is stored as a target: this device may authenticate to it, but it may not authenticate to this device. A token is "
        "valid for one device.",
        "Ctrl-C leaves the token open. With --json, each step is one line; --list, --withdraw and --no-wait print one document.",
    ),
)
