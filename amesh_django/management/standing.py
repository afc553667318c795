"""approve, deny, suspend, lift, reinstate: whether this server accepts a device."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from amesh_django.allow_list import DatabaseAllowList
from amesh_django.decisions import Decided
from amesh_django.states import ACTIVE, DENIED, EXPIRED, PENDING, REVOKED, SUSPENDED
from authmesh.commands.context import Context
from authmesh.commands.home import Listed
from authmesh.commands.selecting import add_devices
from authmesh.commands.spec import Command, add_yes
from authmesh.commands.terminal.errors import UsageProblem
from authmesh.commands.words import when
from authmesh.protocol.errors import Run

from .deciding import choose, confirm, moment, report
from .home import as_model_time


def _list(context: Context) -> DatabaseAllowList:
    return DatabaseAllowList(by=context.home.actor)


def _now_accepted(device: Listed) -> str:
    return "is accepted now" if device.state == ACTIVE else f"is {device.state}"


def _lifted(device: Listed) -> str:
    if device.state != SUSPENDED:
        return _now_accepted(device)
    return f"is still suspended ({device.decided}): to lift that in spite of the hub, run the command again"


def approve(context: Context, *, devices: Sequence[str], yes: bool) -> None:
    """Accept devices that wait for approval, or that were denied."""
    chosen = choose(context, devices, (PENDING, DENIED, EXPIRED, SUSPENDED, ACTIVE), "device in the list")
    if any(device.is_undecided for device in chosen):
        confirm(context, "Approve", chosen, yes=yes)
    report(context, _list(context).approve([device.entry.device_id for device in chosen]), _now_accepted)


def deny(context: Context, *, devices: Sequence[str], reason: str, yes: bool) -> None:
    """Deny devices that wait for approval."""
    chosen = choose(context, devices, (PENDING, DENIED, SUSPENDED, EXPIRED), "device that waits for approval")
    confirm(context, "Deny", chosen, yes=yes)
    denied = _list(context).deny([device.entry.device_id for device in chosen], reason=reason)
    report(context, denied, lambda device: "is denied, and its key cannot be trusted again without amesh_approve")


def suspend(context: Context, *, devices: Sequence[str], until: str | None, reason: str, yes: bool) -> None:
    """Stop accepting devices for a time, or until the suspension is lifted."""
    end = as_model_time(moment("--until", until, context.now())) if until is not None else None
    chosen = choose(context, devices, (ACTIVE, PENDING, EXPIRED, SUSPENDED), "device in the list")
    confirm(context, "Suspend", chosen, yes=yes)
    ids = [device.entry.device_id for device in chosen]
    suspended = _list(context).suspend(ids, until=end, reason=reason)
    report(
        context,
        suspended,
        lambda device: (
            f"is suspended {f'until {when(device.suspended_until)}' if device.suspended_until else 'until that is lifted'}"
        ),
    )


def lift(context: Context, *, devices: Sequence[str]) -> None:
    """End the suspension of devices."""
    chosen = choose(context, devices, (ACTIVE, PENDING, EXPIRED, SUSPENDED), "device in the list")
    report(context, _list(context).lift([device.entry.device_id for device in chosen]), _lifted)


def reinstate(context: Context, *, device: str, yes: bool) -> None:
    """Undo the revocation of a device."""
    revoked = [one for one in context.home.devices() if one.state == REVOKED]
    chosen = [one for one in revoked if one.entry.device_id == device]
    if not chosen:
        raise UsageProblem(
            f"{device!r} is not the device ID of a revoked device. Nothing was changed.",
            hint=("Use the whole device ID, as ", Run("list", "--state revoked"), " shows it."),
        )
    confirm(
        context,
        "Reinstate",
        chosen,
        yes=yes,
        about=["It gets back its role, permissions, scopes, and groups. It no longer acts as a Django user."],
    )
    row = _list(context).reinstate(device)
    report(
        context,
        Decided([row], frozenset([device])),
        lambda found: f"is not revoked any more: it {_now_accepted(found)}",
    )


def _only_devices(parser: ArgumentParser) -> None:
    add_devices(parser)


def _approve_arguments(parser: ArgumentParser) -> None:
    add_devices(parser)
    add_yes(parser)


def _reason_arguments(parser: ArgumentParser) -> None:
    add_devices(parser)
    parser.add_argument("--reason", metavar="TEXT", default="", help="Why. Recorded with the decision.")
    add_yes(parser)


def _suspend_arguments(parser: ArgumentParser) -> None:
    _reason_arguments(parser)
    parser.add_argument(
        "--until",
        metavar="TIME",
        help="End of the suspension: a span such as 12h or 30d, or a time such as 2027-01-31T18:00:00Z. Defaults to none.",
    )


def _reinstate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "device", metavar="DEVICE_ID", help="Whole device ID of a revoked device. A name is not enough."
    )
    add_yes(parser)


APPROVE = Command(
    "approve",
    "Accept devices that wait for approval, or that were denied.",
    approve,
    _approve_arguments,
    details=(
        "With AMESH['REQUIRE_APPROVAL'], new controllers wait. Compare the device ID with the one that the device shows.",
    ),
    asks=True,
)
DENY = Command(
    "deny",
    "Deny devices that wait for approval. Their keys cannot be trusted again without approve.",
    deny,
    _reason_arguments,
    asks=True,
)
SUSPEND = Command(
    "suspend",
    "Stop accepting devices for a time, or until the suspension is lifted.",
    suspend,
    _suspend_arguments,
    details=("A suspended device keeps its row, permissions, and groups. To stop trusting it for good, revoke it.",),
    asks=True,
)
LIFT = Command("lift", "End the suspension of devices.", lift, _only_devices)
REINSTATE = Command(
    "reinstate",
    "Undo the revocation of a device.",
    reinstate,
    _reinstate_arguments,
    details=(
        "Reinstate only a device that was revoked by mistake. If its key may have been stolen, let it make a new one.",
    ),
    asks=True,
)
