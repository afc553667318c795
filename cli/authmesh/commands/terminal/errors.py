"""The ways in which a conversation with a person ends early."""

from __future__ import annotations

from typing import ClassVar

from authmesh.protocol.errors import AmeshError, Hint, Run

INTERRUPTED_CODE = "interrupted"


class Unanswered(AmeshError):
    """A question got no answer: ``--no-input`` was given, or standard input has ended. The answer is no."""

    code = "refused"
    default_message = "A question was not answered, and the default is no. Nothing was changed."


class Declined(AmeshError):
    """A person answered no."""

    code = "declined"
    default_message = "Nothing was changed."


class OutputFailed(AmeshError):
    """The words of a command cannot be written, for example because the disk is full. The command may have done its work before."""

    code = "output_failed"
    default_message = "The output cannot be written. What the command has done was not undone."
    default_hint = ("Write the output to another place. To see the state of this device, run ", Run("list"), ".")

    @classmethod
    def because_of(cls, error: OSError) -> OutputFailed:
        """Return the error that names the reason of the system."""
        why = error.strerror or type(error).__name__
        message = f"The output cannot be written ({why}). What the command has done was not undone."
        return cls(message, hint=cls.default_hint)


class ExitingError(AmeshError):
    """Base of the errors that end a command with an exit code of their own.

    Attributes:
        exit_code: the exit code; that of all other errors is 1.
    """

    exit_code: ClassVar[int] = 1


class UsageProblem(ExitingError):
    """The options contradict each other, or an option is missing. The exit code is 2."""

    code = "usage"
    exit_code = 2
    default_message = "The options are not valid. Nothing was changed."


class Interrupted(KeyboardInterrupt):
    """Ctrl-C was pressed.

    Args:
        message: what was and was not changed.
    """

    def __init__(self, message: Hint = "Interrupted. Nothing was changed.") -> None:
        super().__init__()
        self.message = message
