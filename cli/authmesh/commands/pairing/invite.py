"""invite: be the controller of a pairing. Use the code that the target shows, and show a verification code for it."""

from __future__ import annotations

from argparse import ArgumentParser

from authmesh.pairing import ControllerOperator, Met, Paired, Pairing, Step
from authmesh.protocol.allow_list import TARGET, DeviceEntry
from authmesh.protocol.errors import Run
from authmesh.protocol.pairing.codes import parse_code
from authmesh.protocol.pairing.errors import InvalidCode

from ..context import Context
from ..relays import add_relay, add_v1, relay_address
from ..spec import Command, add_yes
from ..terminal.console import Console
from ..terminal.errors import Unanswered
from ..terminal.lines import Shown
from ..terminal.prompts import Prompts
from .meeting import Meeting

#: How often a person may mistype the one-time code.
CODE_TRIES = 3


def _no_code() -> Unanswered:
    return Unanswered(
        "No one-time code was typed. Nothing was done.",
        hint="Run listen on the other device, and use the code that it shows.",
    )


def _nobody() -> Unanswered:
    return Unanswered(
        "The question whether the other screen says “Verified” was not answered, so the answer is no. Nothing was stored here.",
        hint="A program answers on stdin: see --json in the help of the command. To omit the question, use --yes.",
    )


class _Controller(Meeting, ControllerOperator):
    is_sure = False

    def lines_for(self, step: Step) -> list[Shown]:
        if step == "matched":
            return ["The relay has found the device that shows this code.", ""]
        if step == "agreed":
            return ["The other device reports that the code was correct."]
        return []

    def stored_by_other(self) -> str:
        if self.version == 1:
            return "The other device may list this one as a controller: run list on that device."
        return ""

    def show_verification_code(self, code: str, met: Met) -> None:
        self.meet(met)
        self.console.say(*self.peer_lines(met), "", self.comparison, "")
        self.console.step({"step": "verification_code", "code": code})
        self.show_large("Verification code", code)
        self.console.say("Type this code on the other device.")
        self.count_down(self.context.timeouts.person, " waiting for the other device, {left} s left")

    async def confirm_verified(self, met: Met) -> bool:
        remarks = await self.remarks(met)
        if self.is_sure:
            self.console.say(*remarks)
            return True
        self.ask_json("verified")
        return await self.prompts.confirm(
            "Does the other screen say “Verified”?",
            about=[*remarks, "Look at the other screen: a malicious relay could have sent this report."],
            unanswered=_nobody(),
        )


async def _ask_code(console: Console, prompts: Prompts) -> str:
    for left in reversed(range(CODE_TRIES)):
        console.step({"step": "question", "question": "code"})
        typed = await prompts.text("One-time code that listen shows: ", unanswered=_no_code())
        if not typed:
            raise _no_code()
        try:
            return parse_code(typed)
        except InvalidCode as error:
            if not left or console.as_json:
                raise
            console.beside(error.text(console.spell))
    raise AssertionError


def invite(context: Context, *, code: str | None, relay: str | None, v1: bool, yes: bool) -> None:
    """Use a code, show the verification code, store the target."""
    pair(context, code=code, relay=relay, v1=v1, yes=yes)


def pair(context: Context, *, code: str | None, relay: str | None, v1: bool, yes: bool) -> DeviceEntry:
    """Do what :func:`invite` does, and return the target."""
    if context.console.no_input and not (code and yes):
        raise Unanswered(
            "This command asks whether the other screen says “Verified”, and --no-input was given. Nothing was done.",
            hint="To omit the question, use CODE and --yes. A program answers on stdin: see --json in the help of the command.",
        )
    address = relay_address(relay)
    given = parse_code(code) if code is not None else None
    controller = _Controller(context, address, 1 if v1 else 2, TARGET, {})
    controller.is_sure = yes
    controller.introduce_self()

    async def meet(pairing: Pairing) -> Paired:
        return await pairing.invite(given or await _ask_code(context.console, controller.prompts), controller)

    paired = controller.hold(meet)
    controller.conclude(
        paired,
        [
            ("This device", "may authenticate to it, from now on"),
            ("It may not", "authenticate to this device"),
            ("Next", (Run("fetch", "URL"), ", with a URL of that server")),
            ("To look", (Run("list"),)),
            ("To undo", (Run("revoke", paired.entry.device_id), ", and revoke this device on that one")),
        ],
    )
    return paired.entry


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "code",
        metavar="CODE",
        nargs="?",
        help="The one-time code, six digits. If it is omitted, the command asks for it.",
    )
    add_relay(parser)
    add_v1(parser)
    add_yes(
        parser,
        "Do not ask whether the other screen says “Verified”. A malicious relay could then make this device list a target that is not the "
        "one you mean.",
    )


INVITE = Command(
    "invite",
    "Pair: use the one-time code that listen shows on another device, to call that device from this one.",
    invite,
    _arguments,
    details=(
        "The command shows a verification code, which you type on the other device, and then asks whether the screen there says "
        "“Verified”.",
        "Other users of this machine can see CODE in the list of processes while the command runs. Omit it to be asked for it.",
        "With --json, a program answers: after the step “question”, it writes one line to stdin. code: the one-time code. verified: y if "
        "the program of the other device has reported the step “verified”; everything else is no.",
    ),
    asks=True,
    steps=True,
)
