"""invite: be the controller of a pairing. It comes with the code that the target shows, and shows a verification code for it."""

from __future__ import annotations

from authmesh.pairing import ControllerOperator, Met, Paired, Pairing, Step
from authmesh.protocol.allow_list import TARGET
from authmesh.protocol.pairing.codes import parse_code
from authmesh.protocol.pairing.errors import InvalidCode

from ..relays import RELAY, V1, relay_address
from ..spec import Command, Context, Option
from ..terminal.console import Console, Line, Refused
from ..terminal.prompts import Prompts
from .meeting import Meeting

#: How often a person may mistype the one-time code.
CODE_TRIES = 3
_NO_CODE = "The one-time code is missing: it is what listen shows on the other machine. Nothing was done."
_NOBODY = (
    "Nobody is here to say whether the other screen says “Verified”, so the answer is no. A program answers on stdin, see --json; --yes "
    "leaves the question out. Nothing was stored here."
)


class _Controller(Meeting, ControllerOperator):
    own = "invite"
    is_sure = False

    def words_for(self, step: Step) -> list[Line | str] | str | None:
        """See :class:`Meeting`."""
        if step == "matched":
            return ["The relay has found the device that shows this code.", ""]
        if step == "agreed":
            return "The other side says that the code was right."
        return None

    def elsewhere(self) -> str:
        """See :class:`Meeting`."""
        if self.version == 1:
            return "The other device may list this one as a controller: look there, with list."
        return ""

    def show_verification_code(self, code: str, met: Met) -> None:
        """See :class:`ControllerOperator`."""
        self.meet(met)
        self.console.say(*self.peer_lines(met), "", "Compare the device id with the one on the other screen.", "")
        self.console.step({"step": "verification_code", "code": code})
        self.show_large("Verification code", code)
        self.console.say("Type this code on the other machine.")
        self.count_down(self.context.timeouts.person, " waiting for the other machine, {left} s left")

    async def confirm_verified(self, met: Met) -> bool:
        """See :class:`ControllerOperator`."""
        past = await self.past(met)
        if self.is_sure:
            return True
        self.ask_json("verified")
        return await self.prompts.confirm(
            "Does the other screen say “Verified”?",
            about=[*past, "Look at the other screen: a dishonest relay could have made that up."],
            unanswered=_NOBODY,
        )


async def _ask_code(console: Console, prompts: Prompts) -> str:
    for left in reversed(range(CODE_TRIES)):
        console.step({"step": "question", "question": "code"})
        typed = await prompts.text("One-time code, as listen shows it: ", unanswered=_NO_CODE)
        if not typed:
            raise Refused(_NO_CODE)
        try:
            return parse_code(typed)
        except InvalidCode as error:
            if not left or console.as_json:
                raise
            console.beside(str(error))
    raise AssertionError


def invite(context: Context, *, code: str | None, relay: str | None, v1: bool, yes: bool) -> None:
    """Come with a code, show the verification code, store the target."""
    if context.console.no_input and not (code and yes):
        raise Refused(
            f"{context.command('invite')} asks whether the other screen says “Verified”, and --no-input forbids asking. --yes, with CODE, "
            "leaves that out; a program answers on stdin, see --json. Nothing was done."
        )
    address = relay_address(relay)
    given = parse_code(code) if code is not None else None
    controller = _Controller(context, address, 1 if v1 else 2, TARGET, {})
    controller.is_sure = yes
    controller.introduce_self()

    async def pair(pairing: Pairing) -> Paired:
        return await pairing.invite(given or await _ask_code(context.console, controller.prompts), controller)

    paired = controller.hold(pair)
    controller.conclude(
        paired,
        [
            ("This device", "may authenticate to it, from now on"),
            ("It may not", "authenticate to this device"),
            ("Next", f"{context.command('fetch')} URL, with a URL of that server"),
            ("To look", context.command("list")),
            ("To undo", f"{context.command('revoke')} {paired.entry.device_id}, here and there"),
        ],
    )


INVITE = Command(
    "invite",
    "Pair: come with the one-time code that listen shows on the other machine, to call that machine from here.",
    invite,
    (
        Option(("code",), "The one-time code, six digits; asked for if it is left out.", metavar="CODE"),
        RELAY,
        V1,
        Option(
            ("--yes", "-y"),
            "Do not ask whether the other screen says “Verified”. A dishonest relay could then make this device list a target that is "
            "not the one you mean.",
            "flag",
        ),
    ),
    details=(
        "Shows a verification code, which is to be typed on the other machine, then asks whether the screen there says “Verified”.",
        "The list of processes shows CODE to other users of this machine while it lives. Leave it out to be asked for it.",
        "With --json a program answers: when the step “question” comes, it writes one line to stdin. code: the one-time code. verified: y, "
        "if the other side's program has reported the step “verified”; anything else is no.",
    ),
    asks=True,
    steps=True,
)
