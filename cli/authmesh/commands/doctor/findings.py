"""What doctor finds: one check after the other, each with a limit of its own, none of them in the way of the next."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from authmesh.protocol.display import clean_line
from authmesh.protocol.errors import AmeshError

from ..terminal.console import Console, Line, Tone

T = TypeVar("T")
Status = Literal["ok", "warning", "problem", "skipped"]
#: What a check returns: what it found; an empty list where there is nothing to say.
Found = Iterable["Finding"]

#: How long a check may take that asks nothing of the network, in seconds. A key file costs an Argon2id, a busy TPM ten seconds.
LOCAL_SECONDS = 30.0

_TONES: dict[Status, Tone] = {"ok": "good", "warning": "warning", "problem": "bad", "skipped": "quiet"}
_WIDTH = len("warning")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of doctor.

    Attributes:
        id: of the check; it stays, so that programs can rely on it.
        status: ``ok``; ``warning``, to be looked after; ``problem``, something does not work; ``skipped``, not looked at.
        message: what was found.
        advice: what to do. Empty where there is nothing to be done.
    """

    id: str
    status: Status
    message: str
    advice: str = ""

    def to_json(self) -> dict[str, str]:
        """For ``--json``."""
        return {"id": self.id, "status": self.status, "message": self.message, "advice": self.advice}


def of_sentence(id: str, text: str, status: Status = "problem") -> Finding:
    """A finding out of the sentences of an error: the first says what is wrong, the others what to do."""
    what, dot, advice = text.partition(". ")
    return Finding(id, status, what + ("." if dot else ""), advice)


class TookTooLong(AmeshError):
    """A check did not end in its time."""

    code = "timeout"


def bounded(work: Callable[[], T], seconds: float) -> T:
    """Run something that may hang in a thread of its own, which is left behind if it does.

    Raises:
        TookTooLong: it was not done in time.
        Exception: what it raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()
    here = contextvars.copy_context()

    def run() -> None:
        try:
            results.append(here.run(work))
        except BaseException as error:  # it is raised again where it is waited for
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="amesh-doctor", daemon=True).start()
    if not done.wait(seconds):
        raise TookTooLong(f"It took longer than {seconds:g} s.")
    if errors:
        raise errors[0]
    return results[0]


class Examination:
    """Runs checks, shows what they find at once, and keeps it.

    Args:
        console: where it is shown.
        translate: what the front end knows better of an error; None where it knows nothing.
        prepare: called in the thread of each check before it; Django lends its database connections there.
    """

    def __init__(
        self,
        console: Console,
        translate: Callable[[Exception], AmeshError | None] = lambda error: None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self.findings: list[Finding] = []
        self._console = console
        self._translate = translate
        self._prepare = prepare
        self._stuck: set[str] = set()

    def look(self, id: str, check: Callable[[], Found], *, of: str = "", seconds: float = LOCAL_SECONDS) -> bool:
        """Run one check.

        Args:
            id: of what it finds if it fails.
            check: returns what it finds.
            of: what it asks, such as ``database``: if that did not answer once, it is not asked again.
            seconds: how long it may take.

        Returns:
            True if it found no problem, and could be run.
        """
        if of and of in self._stuck:
            found = [Finding(id, "skipped", f"Not looked at: the {of} did not answer before.")]
        else:
            found = self._run(id, check, of, seconds)
        for finding in found:
            self._show(finding)
        self.findings += found
        return all(finding.status in ("ok", "warning") for finding in found)

    def skip(self, id: str, why: str, advice: str = "") -> None:
        """A check that can't be run."""
        self.look(id, lambda: [Finding(id, "skipped", why, advice)])

    def count(self, status: Status) -> int:
        """How many findings are of that kind."""
        return sum(finding.status == status for finding in self.findings)

    def _run(self, id: str, check: Callable[[], Found], of: str, seconds: float) -> list[Finding]:
        def work() -> list[Finding]:
            self._prepare()
            return list(check())

        try:
            return bounded(work, seconds)
        except TookTooLong:
            self._stuck |= {of} if of else set()
            what = f"The {of}" if of else "This"
            return [
                Finding(
                    id, "problem", f"{what} did not answer within {seconds:g} s.", "See that it runs, then try again."
                )
            ]
        except Exception as error:  # whatever one check runs into, the others are still of use
            return [_of_error(id, self._translate(error) or error)]

    def _show(self, finding: Finding) -> None:
        label = f"{finding.status.ljust(_WIDTH)}  {finding.id.ljust(13)}"
        self._console.say(Line(finding.message, _TONES[finding.status], label=label))
        if finding.advice:
            self._console.say(Line(f"{'':{_WIDTH + 4}}-> {finding.advice}"))


def _of_error(id: str, error: Any) -> Finding:
    if isinstance(error, AmeshError):
        return of_sentence(id, str(error))
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return Finding(id, "problem", f"{place}{error.strerror or error}.", "Check path, owner and permissions.")
    first = clean_line(str(error).partition("\n")[0])[:200]
    return Finding(
        id, "problem", f"This check ended unexpectedly ({type(error).__name__}: {first}).", "Please report it."
    )
