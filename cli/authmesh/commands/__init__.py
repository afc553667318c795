"""FIRST: the commands that ``amesh`` and ``manage.py amesh_*`` share: the same functions, options and words."""

from .devices import GRANT, LIST, REVOKE
from .doctor.command import DOCTOR
from .identity import EXPORT_KEY, INIT, SIGN_TEST
from .pairing.invite import INVITE
from .pairing.listen import LISTEN
from .requests import FETCH, HEADER
from .spec import INTERRUPTED, JSON, NO_INPUT, YES, Command, Context, Failure, Option, attempt
from .terminal.console import Console, Interrupted, Line, Refused, Tone, UsageProblem, facts, forget_stdout
from .tokens.bootstrap import BOOTSTRAP
from .tokens.provision import PROVISION
from .transfer import EXPORT, IMPORT
from .trust import TRUST

__all__ = [
    "BOOTSTRAP",
    "COMMANDS",
    "DOCTOR",
    "EXPORT",
    "EXPORT_KEY",
    "FETCH",
    "GRANT",
    "HEADER",
    "IMPORT",
    "INIT",
    "INTERRUPTED",
    "INVITE",
    "JSON",
    "LIST",
    "LISTEN",
    "NO_INPUT",
    "PROVISION",
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
COMMANDS: tuple[Command, ...] = (
    INIT,
    LIST,
    LISTEN,
    INVITE,
    PROVISION,
    BOOTSTRAP,
    EXPORT_KEY,
    TRUST,
    REVOKE,
    GRANT,
    SIGN_TEST,
    FETCH,
    HEADER,
    DOCTOR,
)
