"""listen: be the target of a pairing. Show a one-time code, wait for a controller, and trust it once it is verified."""

from __future__ import annotations

import datetime as dt
import shlex
import shutil
from argparse import ArgumentParser
from collections.abc import Sequence

from authmesh.pairing import Met, Step, TargetOperator
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry
from authmesh.protocol.encoding import format_time
from authmesh.protocol.errors import Hint, Run

from ..context import Context
from ..relays import DEFAULT_RELAY, add_relay, add_v1, relay_address
from ..spec import Command
from ..terminal import qr as drawing
from ..terminal.errors import Unanswered, UsageProblem
from ..terminal.lines import Shown, Styled
from ..words import counted, has_shell, named
from .meeting import Meeting

_AT_A_TERMINAL: Hint = (
    "Run ",
    Run("listen"),
    " at a terminal. A program answers on stdin: see --json in the help of the command.",
)


def _nobody() -> Unanswered:
    return Unanswered(
        "The verification code of the other screen was not typed, so the answer is no. Nothing was stored.",
        hint=_AT_A_TERMINAL,
    )


class _Target(Meeting, TargetOperator):
    draws_qr = False
    replaced: DeviceEntry | None = None

    def lines_for(self, step: Step) -> list[Shown]:
        if step == "matched":
            return ["A device has used the code.", ""]
        if step == "verified":
            # The word that the person at the controller looks for on this screen.
            return [Styled("Verified: the code is correct.", "good")]
        if step == "decided":
            return ["If the other device asks whether this screen says “Verified”: it does."]
        return []

    def stored_by_other(self) -> str:
        if "decided" in self.reached:
            return "The other device may list this one as its target, which gives nobody access."
        return ""

    def show_code(self, code: str, relay: str, seconds: float) -> None:
        command = f"amesh invite {code}"
        if relay != DEFAULT_RELAY:
            command += f" --relay {shlex.quote(relay)}"
        expires = format_time(self.context.now() + dt.timedelta(seconds=seconds))
        self.console.step({"step": "code", "code": code, "relay": relay, "expires": expires, "command": command})
        if self.draws_qr and not self.console.as_json:
            self._draw(command)
        self.show_large("One-time code", code)
        self.console.say(
            "Run this command on the device that will call this one:",
            "",
            Styled(f"  {command}", "title", whole=True),
            "",
            # The TypeScript command line, for which version 1 is there, rejects the option.
            *(["If that device runs amesh-django, add --v1 to the command.", ""] if self.version == 1 else []),
        )
        if self.console.is_terminal():
            self.count_down(seconds, " the code is valid for {left} s")
        else:
            self.console.say(f"The code is valid for {seconds:.0f} seconds.")

    def _draw(self, command: str) -> None:
        lines = drawing.draw(command)
        needed = len(lines[0]) + 1
        if self.console.is_terminal() and shutil.get_terminal_size().columns < needed:
            self.console.warn(f"The QR code was not drawn: it needs a terminal of {needed} columns.")
            return
        self.console.say(*[Styled(line, "drawn", whole=True) for line in lines], "")

    async def enter_verification_code(self, met: Met, *, again: bool) -> str | None:
        self.meet(met)
        about: list[Shown] = ["That is not six digits."]
        if not again:
            about = [*self.peer_lines(met), *await self.remarks(met), ""]
            if self.replaced is not None:
                about += [Styled(f"{named(self.replaced)} will be revoked in its place.", "warning"), ""]
            about += [
                f"{self.comparison} That screen also shows a verification code. To trust the other device, type the code here within "
                f"{self.context.timeouts.person:.0f} seconds. To refuse, press Enter.",
            ]
        self.ask_json("verification_code", again=again)
        typed = await self.prompts.text("Verification code: ", about=about, unanswered=_nobody())
        return typed or None

    async def confirm_peer(self, met: Met) -> bool:
        return True  # name, device ID and permissions were shown above the prompt for the code

    async def choose_replaced(self, met: Met, controllers: Sequence[DeviceEntry], limit: int) -> str | None:
        self.ask_json("replace", limit=limit, controllers=[entry.to_json() for entry in controllers])
        if self.console.as_json:
            return await self.prompts.text("", unanswered=_nobody()) or None
        peer = f"{met.peer.device_id} ({met.peer.name})"
        about: list[Shown] = [
            "",
            Styled(
                f"The limit of this device is {counted(limit, 'controller')} (maxControllers), and it trusts {len(controllers)}. To trust "
                "the other device, you must revoke a controller.",
                "warning",
            ),
        ]
        if len(controllers) == 1:
            question = f"Revoke {named(controllers[0])} and trust {peer} in its place?"
            agreed = await self.prompts.confirm(question, about=about, unanswered=_nobody())
            return controllers[0].device_id if agreed else None
        chosen = await self.prompts.choose(
            f"Which controller do you want to revoke, so that {peer} takes its place?",
            [named(entry) for entry in controllers],
            about=about,
            unanswered=_nobody(),
        )
        return None if chosen is None else controllers[chosen].device_id


def listen(context: Context, *, relay: str | None, shell: bool, replace: str | None, qr: bool, v1: bool) -> None:
    """Show a code, and trust the controller that uses it and is verified."""
    if context.console.no_input:
        raise Unanswered(
            "This command asks for the verification code of the other screen, and --no-input was given. Nothing was done.",
            hint=_AT_A_TERMINAL,
        )
    if qr and context.console.as_json:
        raise UsageProblem(
            "--qr draws for people, and --json was given. Nothing was done.",
            hint="Omit --qr: the step “code” has the command as text.",
        )
    address = relay_address(relay)
    if qr:
        drawing.check(context.console.encoding)
    target = _Target(context, address, 1 if v1 else 2, CONTROLLER, {"shell": True} if shell else {})
    target.draws_qr = qr
    target.replaced = target.allow_list.get(replace) if replace is not None else None
    target.introduce_self()
    paired = target.hold(
        lambda pairing: pairing.listen(target, permissions=target.granted, replacing=replace),
    )
    entry = paired.entry
    may = "authenticate to this device, from now on"
    no_shell: Hint = ("open a shell; to allow it, run ", Run("grant", f"{entry.device_id} --shell"))
    waits = context.home.after_trusting(entry)
    target.conclude(
        paired,
        [
            ("It may", waits or (f"{may}, and open a shell on it" if has_shell(entry) else may)),
            *([] if has_shell(entry) else [("It may not", no_shell)]),
            *([("Revoked", named(paired.replaced))] if paired.replaced else []),
            ("Next", "on that device: amesh fetch URL, with a URL of this server"),
            ("To look", (Run("list"),)),
            ("To undo", (Run("revoke", entry.device_id),)),
        ],
    )


def _arguments(parser: ArgumentParser) -> None:
    add_relay(parser)
    parser.add_argument("--shell", action="store_true", help="Grant the other device a shell.")
    parser.add_argument("--replace", metavar="ID", help="Device ID of a trusted device to revoke in the same step.")
    parser.add_argument("--qr", action="store_true", help="Also draw the command for the other device as a QR code.")
    add_v1(parser)


LISTEN = Command(
    "listen",
    "Pair: show a one-time code, and trust the device that uses it.",
    listen,
    _arguments,
    details=(
        "On the other device, run invite with the code within 60 seconds. That screen then shows a verification code, which you type here. "
        "Only the verification code makes this device trust the other one.",
        "With --json, a program answers: after the step “question”, it writes one line to stdin. verification_code: the six digits, or an "
        "empty line for no. replace: the device ID of the controller to revoke, or an empty line for no.",
    ),
    asks=True,
    steps=True,
)
