"""The findings of doctor: one check after the other, each with a time limit, and none of them able to stop the next."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from authmesh.protocol.errors import AmeshError, Hint

from ..terminal.console import Console
from ..terminal.lines import Styled, Tone
from ..words import first_line

T = TypeVar("T")
Status = Literal["ok", "warning", "problem", "skipped"]
#: The findings of one check; empty if there is nothing to report.
Found = Iterable["Finding"]

#: Time limit of a check that does not use the network, in seconds. A key file costs an Argon2id, a busy TPM ten seconds.
LOCAL_SECONDS = 30.0

_TONES: dict[Status, Tone] = {"ok": "good", "warning": "warning", "problem": "bad", "skipped": "quiet"}
_WIDTH = len("warning")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of doctor.

    Attributes:
        id: id of the check. It never changes, so programs can rely on it.
        status: ``ok``; ``warning``, something needs attention; ``problem``, something does not work; ``skipped``, not examined.
        message: what was found.
        hint: what to do; empty if there is nothing to do.
    """

    id: str
    status: Status
    message: str
    hint: Hint = ""

    @classmethod
    def of_error(cls, id: str, error: AmeshError, status: Status = "problem") -> Finding:
        """Return the finding that reports an error."""
        return cls(id, status, str(error.message), error.hint)


class CheckTimedOut(AmeshError):
    """A check did not end within its time limit."""

    code = "timeout"
    default_message = "The check did not end in time."


def bounded(work: Callable[[], T], seconds: float) -> T:
    """Run something that may hang in a thread of its own. If it hangs, the thread is abandoned.

    Raises:
        CheckTimedOut: it was not done in time.
        Exception: as raised by *work*.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    done = threading.Event()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            results.append(context.run(work))
        except BaseException as error:  # raised again in the thread that waits
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="amesh-doctor", daemon=True).start()
    if not done.wait(seconds):
        raise CheckTimedOut(f"The check took longer than {seconds:g} s.")
    if errors:
        raise errors[0]
    return results[0]


class Examination:
    """Runs checks, shows their findings at once, and keeps them.

    Args:
        console: the console that shows them.
        translate: returns a better error for one that only the front end knows, or None.
        prepare: called in the thread of each check first; Django lends its database connections to the thread.
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

    def look(self, id: str, check: Callable[[], Found], *, of: str = "", seconds: float | None = None) -> bool:
        """Run one check.

        Args:
            id: id of the finding if the check fails.
            check: returns findings.
            of: the component that it queries, such as ``database``. A component that did not answer once is not queried again.
            seconds: its time limit. Defaults to :data:`LOCAL_SECONDS`.

        Returns:
            True if the check was run and found no problem.
        """
        if of and of in self._stuck:
            found = [Finding(id, "skipped", f"Not examined: the {of} did not answer before.")]
        else:
            found = self._run(id, check, of, LOCAL_SECONDS if seconds is None else seconds)
        for finding in found:
            self._show(finding)
        self.findings += found
        return all(finding.status in ("ok", "warning") for finding in found)

    def skip(self, id: str, why: str) -> None:
        """Report a check that cannot be run."""
        self.look(id, lambda: [Finding(id, "skipped", why)])

    def count(self, status: Status) -> int:
        """Return the number of findings with this status."""
        return sum(finding.status == status for finding in self.findings)

    def to_json(self) -> list[dict[str, str]]:
        """Return all findings for ``--json``."""
        return [
            {
                "id": finding.id,
                "status": finding.status,
                "message": finding.message,
                "advice": self._console.text(finding.hint),
            }
            for finding in self.findings
        ]

    def text(self) -> str:
        """Return everything that was shown as one text."""
        return " ".join(f"{finding.message} {self._console.text(finding.hint)}" for finding in self.findings)

    def _run(self, id: str, check: Callable[[], Found], of: str, seconds: float) -> list[Finding]:
        def work() -> list[Finding]:
            self._prepare()
            return list(check())

        try:
            return bounded(work, seconds)
        except CheckTimedOut:
            self._stuck |= {of} if of else set()
            what = f"The {of}" if of else "This"
            hint = "Check that it is running, then try again."
            return [Finding(id, "problem", f"{what} did not answer within {seconds:g} s.", hint)]
        except Exception as error:  # an unexpected error in one check must not stop the others
            return [_of_exception(id, self._translate(error) or error)]

    def _show(self, finding: Finding) -> None:
        label = f"{finding.status.ljust(_WIDTH)}  {finding.id.ljust(13)}"
        self._console.say(Styled(finding.message, _TONES[finding.status], label=label))
        if finding.hint:
            self._console.say(f"{'':{_WIDTH + 4}}-> {self._console.text(finding.hint)}")


def _of_exception(id: str, error: Exception) -> Finding:
    if isinstance(error, AmeshError):
        return Finding.of_error(id, error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        hint = "Check the path, its owner and its permissions."
        return Finding(id, "problem", f"{place}{error.strerror or error}.", hint)
    why = f"{type(error).__name__}: {first_line(error)}"
    return Finding(id, "problem", f"This check ended unexpectedly ({why}).", "Report it as a bug.")
