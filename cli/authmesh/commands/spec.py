"""What a command is: its name, its options, its function; and the one place where errors become exit codes."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from authmesh.device import AllowList, LocalDevice, permission_problems
from authmesh.files.clock import utc_now
from authmesh.pairing import Blocking, Timeouts
from authmesh.pairing.bootstrap.enrolment import Enrolment
from authmesh.protocol.errors import AmeshError

from .terminal.console import INTERRUPTED_CODE, Console, Declined, Interrupted, Line, UsageProblem

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True)
class Option:
    """An option, or (``name`` without dashes) an argument. Both front ends build theirs from this.

    Attributes:
        flags: ``("--data", "-d")``; the first gives the name of the parameter. ``("device_id",)`` is an argument.
        help: one sentence.
        kind: ``text``, ``number``, ``seconds``, ``flag`` (given or not) or ``switch`` (``--x``, ``--no-x`` or neither).
        metavar: what stands for the value in the help.
        choices: the values allowed.
        required: an argument or option that may not be left out.
        multiple: may be given several times.
        default: where it is left out.
    """

    flags: tuple[str, ...]
    help: str
    kind: Literal["text", "number", "seconds", "flag", "switch"] = "text"
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    required: bool = False
    multiple: bool = False
    default: Any = None

    @property
    def is_argument(self) -> bool:
        """True if it is given by its place."""
        return not self.flags[0].startswith("-")

    @property
    def name(self) -> str:
        """Name of the function's parameter."""
        return self.flags[0].lstrip("-").replace("-", "_")


YES = Option(("--yes", "-y"), "Do it without asking.", "flag")
#: Options of every command; the front ends hand them to the console.
JSON = Option(
    ("--json",), "Print one JSON document for programs; warnings and errors are JSON lines on stderr.", "flag"
)
JSON_STEPS = Option(
    ("--json",),
    "Print one JSON line for each step, for programs, which answer by lines on stdin; warnings and errors are JSON lines on stderr.",
    "flag",
)
NO_INPUT = Option(("--no-input",), "Never ask: what would be asked is answered with no.", "flag")


@dataclass(frozen=True, slots=True)
class Context:
    """What a front end hands over.

    Attributes:
        console: where words go and answers come from.
        directory: the device directory.
        device: opens this device.
        allow_list: opens the list of trusted devices.
        command: how another command is called here: ``list`` → ``amesh list``.
        actor: who does it, for stores that keep that.
        past: what is known of a key that is not trusted now (a sentence such as "It was revoked …"), or None.
        now: the clock.
        blocking: how a function that blocks is run beside an event loop; Django's keeps its database connections in order.
        timeouts: how long pairing waits for what.
        fate: what becomes of the allow list when the identity is replaced: a sentence about the controllers in it.
        enrolment: how this device is enrolled by a bootstrap token, with the members named that are to be others; None means into
            its directory.
    """

    console: Console
    directory: Path
    device: Callable[[], LocalDevice]
    allow_list: Callable[[], AllowList]
    command: Callable[[str], str]
    actor: str = ""
    past: Callable[[bytes], str | None] = lambda public_key: None
    now: Callable[[], dt.datetime] = utc_now
    blocking: Blocking = asyncio.to_thread
    timeouts: Timeouts = field(default_factory=Timeouts)
    fate: str = "The list is set aside: who is to be let in again must be trusted anew."
    enrolment: Callable[..., Enrolment] | None = None

    def own_device(self) -> LocalDevice:
        """This device; a warning for each of its files that is open to others. The PIN of its key is asked on the terminal.

        Raises:
            IdentityMissing, DirectoryError, KeyStoreError: as :class:`authmesh.device.LocalDevice`.
        """
        device = self.device()
        for problem in permission_problems(device.path):
            self.console.warn(str(problem))
        device.ask_pin_by(lambda: self.console.ask_secret("PIN of this device's key: ", instead="AMESH_TPM_PIN_FILE"))
        return device

    def confirm(self, question: str, *, about: list[Line | str], yes: bool, instead: str = "--yes") -> None:
        """Ask before something is done, unless *yes*.

        Raises:
            Declined: the answer is no.
            Refused: nobody answers.
            Interrupted: Ctrl-C.
        """
        if not yes and not self.console.ask(question, about=about, instead=instead):
            raise Declined()


@dataclass(frozen=True, slots=True)
class Command:
    """A command of both front ends.

    Attributes:
        name: with dashes, such as ``sign-test``.
        summary: one line for the list of commands.
        run: called with the context and the options by name.
        options: its own options and arguments.
        details: paragraphs for ``--help``.
        asks: it may ask; ``--no-input`` is an option then.
        steps: its ``--json`` prints one line for each step.
    """

    name: str
    summary: str
    run: Callable[..., None]
    options: tuple[Option, ...] = ()
    details: tuple[str, ...] = ()
    asks: bool = False
    steps: bool = False

    @property
    def common(self) -> tuple[Option, ...]:
        """The options that the console takes."""
        json = JSON_STEPS if self.steps else JSON
        return (NO_INPUT, json) if self.asks else (json,)

    @property
    def help(self) -> str:
        """The whole text above the options, paragraphs apart by an empty line."""
        return "\n\n".join((self.summary, *self.details))


class Failure(NamedTuple):
    """How a command ended that did not succeed."""

    exit_code: int
    code: str
    message: str


def attempt(
    command: Command,
    context: Context,
    options: dict[str, Any],
    *,
    translate: Callable[[Exception], AmeshError | None] = lambda error: None,
) -> Failure | None:
    """Run a command. Never raises for what a person, a file or a network can do.

    Args:
        options: the command's own options by name.
        translate: what the front end knows better of an error; None where it knows nothing.

    Returns:
        None if it was done; otherwise why not. Printing that is the front end's part.
    """
    with context.console.hearing_logs():
        try:
            command.run(context, **options)
        except KeyboardInterrupt as interrupt:
            text = str(interrupt) if isinstance(interrupt, Interrupted) else "Interrupted."
            return Failure(INTERRUPTED, INTERRUPTED_CODE, text)
        except BrokenPipeError:
            raise
        except Exception as error:
            known = translate(error) or error
            if isinstance(known, AmeshError):
                exit_code = WRONG_USAGE if isinstance(known, UsageProblem) else FAILED
                return Failure(exit_code, known.code, str(known))
            if isinstance(known, OSError):
                place = f"{known.filename}: " if known.filename else ""
                why = known.strerror or str(known)
                return Failure(FAILED, "os_error", f"{place}{why}. Check path, owner and permissions.")
            raise
    return None
