"""All commands that both front ends have. ``import`` and ``export`` (:mod:`.transfer`) are commands of a server only."""

from .devices import LIST, REVOKE
from .doctor.command import DOCTOR
from .granting import GRANT, RENAME, SHOW
from .identity import EXPORT_KEY, SIGN_TEST
from .init import INIT
from .pairing.invite import INVITE
from .pairing.listen import LISTEN
from .requests import FETCH, HEADER
from .rotate import ROTATE
from .spec import Command
from .tokens.bootstrap import BOOTSTRAP
from .tokens.enroll import ENROLL
from .tokens.provision import PROVISION
from .trust import TRUST

#: In the order of the help.
COMMANDS: tuple[Command, ...] = (
    INIT,
    LIST,
    SHOW,
    LISTEN,
    INVITE,
    PROVISION,
    BOOTSTRAP,
    ENROLL,
    ROTATE,
    EXPORT_KEY,
    TRUST,
    REVOKE,
    GRANT,
    RENAME,
    SIGN_TEST,
    FETCH,
    HEADER,
    DOCTOR,
)
