"""listen: be the target of a pairing. It shows a one-time code, waits for a controller, and lets it in once it is verified."""

from __future__ import annotations

import datetime as dt
import shlex
import shutil
from collections.abc import Sequence

from authmesh.pairing import Met, Step, TargetOperator
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry
from authmesh.protocol.encoding import format_time

from ..relays import DEFAULT_RELAY, RELAY, V1, relay_address
from ..spec import Command, Context, Option
from ..terminal import qr as drawing
from ..terminal.console import Line, Refused, UsageProblem
from ..words import has_shell, named
from .meeting import Meeting

_NOBODY = (
    "Nobody is here to type the verification code of the other screen, so the answer is no. Run {command} at a terminal; a program "
    "answers on stdin, see --json. Nothing was stored."
)


class _Target(Meeting, TargetOperator):
    own = "listen"
    draws_qr = False
    replaced: DeviceEntry | None = None

    def words_for(self, step: Step) -> list[Line | str] | str | None:
        """See :class:`Meeting`."""
        if step == "matched":
            return ["A device has come with the code.", ""]
        if step == "verified":
            # The word that the controller's operator looks for on this screen.
            return [Line("Verified: the code is right.", "good")]
        if step == "decided":
            return "If the other screen asks whether this one says “Verified”: it does."
        return None

    def elsewhere(self) -> str:
        """See :class:`Meeting`."""
        return (
            "The other device may list this one as its target; that lets nobody in."
            if "decided" in self.reached
            else ""
        )

    def show_code(self, code: str, relay: str, seconds: float) -> None:
        """See :class:`TargetOperator`."""
        command = f"amesh invite {code}"
        if relay != DEFAULT_RELAY:
            command += f" --relay {shlex.quote(relay)}"
        if self.version == 1:
            command += " --v1"
        expires = format_time(self.context.now() + dt.timedelta(seconds=seconds))
        self.console.step({"step": "code", "code": code, "relay": relay, "expires": expires, "command": command})
        if self.draws_qr and not self.console.as_json:
            self._draw(command)
        self.show_large("One-time code", code)
        self.console.say(
            "Run this on the machine that is to be let in:", "", Line(f"  {command}", "title", whole=True), ""
        )
        if self.console.is_terminal():
            self.count_down(seconds, " the code lives {left} s")
        else:
            self.console.say(f"The code lives {seconds:.0f} seconds.")

    def _draw(self, command: str) -> None:
        lines = drawing.draw(command)
        needed = len(lines[0]) + 1
        if self.console.is_terminal() and shutil.get_terminal_size().columns < needed:
            self.console.warn(f"The QR code needs a terminal of {needed} columns.")
            return
        self.console.say(*[Line(line, "drawn", whole=True) for line in lines], "")

    async def enter_verification_code(self, met: Met, *, again: bool) -> str | None:
        """See :class:`TargetOperator`."""
        self.meet(met)
        about: list[Line | str] = ["That is not six digits."]
        if not again:
            about = [*self.peer_lines(met), *await self.past(met), ""]
            if self.replaced is not None:
                about += [Line(f"In its place {named(self.replaced)} is revoked.", "warning"), ""]
            about += [
                "Compare the device id with the one on the other screen. That screen shows a verification code as well: typing it here "
                f"lets this device in. There are {self.context.timeouts.person:.0f} seconds for that; Enter alone says no.",
            ]
        self.ask_json("verification_code", again=again)
        typed = await self.prompts.text("Verification code: ", about=about, unanswered=self._nobody())
        return typed or None

    def _nobody(self) -> str:
        return _NOBODY.format(command=self.context.command("listen"))

    async def confirm_peer(self, met: Met) -> bool:
        """See :class:`TargetOperator`. Name, id and permissions stood above the code that was typed."""
        return True

    async def choose_replaced(self, met: Met, controllers: Sequence[DeviceEntry], limit: int) -> str | None:
        """See :class:`TargetOperator`."""
        self.ask_json("replace", limit=limit, controllers=[entry.to_json() for entry in controllers])
        if self.console.as_json:
            return await self.prompts.text("", unanswered=self._nobody()) or None
        about: list[Line | str] = [
            "",
            Line(
                f"This device takes {limit} controller{'s' if limit != 1 else ''} (maxControllers) and trusts as many. To trust one "
                "more, one must go.",
                "warning",
            ),
        ]
        if len(controllers) == 1:
            question = f"Revoke {named(controllers[0])} and trust {named_peer(met)} in its place?"
            agreed = await self.prompts.confirm(question, about=about, unanswered=self._nobody())
            return controllers[0].device_id if agreed else None
        chosen = await self.prompts.choose(
            f"Which one is to be revoked, for {named_peer(met)} to take its place?",
            [named(entry) for entry in controllers],
            about=about,
            unanswered=self._nobody(),
        )
        return None if chosen is None else controllers[chosen].device_id


def named_peer(met: Met) -> str:
    """The other side in a sentence."""
    return f"{met.peer.device_id} ({met.peer.name})"


def listen(context: Context, *, relay: str | None, shell: bool, replace: str | None, qr: bool, v1: bool) -> None:
    """Show a code, and let the controller in that comes with it and is verified."""
    if context.console.no_input:
        raise Refused(
            f"{context.command('listen')} asks for the verification code of the other screen, and --no-input forbids asking. A program "
            "answers on stdin, see --json. Nothing was done."
        )
    if qr and context.console.as_json:
        raise UsageProblem("--qr draws for people; with --json the step “code” has the command as text.")
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
    target.conclude(
        paired,
        [
            ("It may", f"{may}, and open a shell on it" if has_shell(entry) else may),
            *(
                []
                if has_shell(entry)
                else [("It may not", f"open a shell; {context.command('grant')} {entry.device_id} --shell allows it")]
            ),
            *([("Revoked", named(paired.replaced))] if paired.replaced else []),
            ("Next", "on that machine: amesh fetch URL, with a URL of this server"),
            ("To look", context.command("list")),
            ("To undo", f"{context.command('revoke')} {entry.device_id}"),
        ],
    )


LISTEN = Command(
    "listen",
    "Pair: show a one-time code here, and let in the device that comes with it.",
    listen,
    (
        RELAY,
        Option(("--shell",), "Grant the other device a shell as well.", "flag"),
        Option(("--replace",), "Device id of a trusted device that is revoked in the same step.", metavar="ID"),
        Option(("--qr",), "Draw the command for the other machine as a QR code, too.", "flag"),
        V1,
    ),
    details=(
        "The other machine runs invite with the code, within 60 seconds. Its screen then shows a verification code, which is to be typed "
        "here: that, and nothing else, lets it in.",
        "With --json a program answers: when the step “question” comes, it writes one line to stdin. verification_code: the six digits, or "
        "an empty line for no. replace: the device id of the controller that is to go, or an empty line for no.",
    ),
    asks=True,
    steps=True,
)
