"""FIRST: the commands that ``amesh`` and ``manage.py amesh_*`` share: the same functions, options and words."""

from .console import Console, Interrupted, Line, Refused, Tone, UsageProblem, facts, forget_stdout
from .identity import EXPORT_KEY, INIT, SIGN_TEST
from .requests import FETCH, HEADER
from .spec import INTERRUPTED, JSON, NO_INPUT, YES, Command, Context, Failure, Option, attempt
from .transfer import EXPORT, IMPORT
from .trust import TRUST
from .trusted import GRANT, LIST, REVOKE

__all__ = [
    "COMMANDS",
    "EXPORT",
    "EXPORT_KEY",
    "FETCH",
    "GRANT",
    "HEADER",
    "IMPORT",
    "INIT",
    "INTERRUPTED",
    "JSON",
    "LIST",
    "NO_INPUT",
    "REVOKE",
    "SIGN_TEST",
    "TRUST",
    "YES",
    "Command",
    "Console",
    "Context",
    "Failure",
    "Interrupted",
    "Line",
    "Option",
    "Refused",
    "Tone",
    "UsageProblem",
    "attempt",
    "facts",
    "forget_stdout",
]

#: The commands that both front ends have, in the order of the help.
COMMANDS: tuple[Command, ...] = (INIT, LIST, EXPORT_KEY, TRUST, REVOKE, GRANT, SIGN_TEST, FETCH, HEADER)
