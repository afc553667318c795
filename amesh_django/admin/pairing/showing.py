"""What the page of a pairing shows: a phase, the steps, and what belongs to the phase."""

from __future__ import annotations

import datetime as dt
import hashlib
import shlex
from dataclasses import dataclass
from typing import Any, Final

from django.contrib.auth import get_user_model
from django.utils.functional import Promise
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from amesh_django.models import Device, PairingSession
from amesh_django.pairing import sessions
from amesh_django.pairing.chosen import Chosen
from amesh_django.pairing.hosting import MAX_WRONG
from amesh_django.states import ACTIVE, DENIED, PENDING, REVOKED
from amesh_django.trust.database import database
from amesh_django.trust.sealing import now
from authmesh.commands.relays import DEFAULT_RELAY
from authmesh.protocol.display import clean, clean_line
from authmesh.protocol.errors import AmeshError

from .. import fleet, shown
from ..trouble import html_of, verify_shown
from .qr import qr_code

Step = PairingSession.Step

_RELAY = gettext_lazy(
    "Check the address of the relay (AMESH['RELAY_URL'], or AMESH_RELAY_URL in the environment of this server), and the network of this "
    "server."
)
#: The hints of errors whose own hint is for a terminal.
_HINTS: Final[dict[str, str | Promise]] = {
    "nobody_came": gettext_lazy("Start again, and use the new code on the device within a minute."),
    "otc_in_use": gettext_lazy("Start again, to get another code."),
    "invalid_relay_url": _RELAY,
    "relay_unreachable": _RELAY,
    "relay_certificate_not_trusted": _RELAY,
    "relay_silent": _RELAY,
    "relay_protocol_violation": _RELAY,
    "rate_limited": gettext_lazy("Wait a minute, then start again."),
    "relay_capacity": gettext_lazy("Wait a minute, then start again, or set AMESH['RELAY_URL'] to another relay."),
    "peer_speaks_v1": gettext_lazy("Update the device. The admin does not pair with version 1."),
    "wrong_verification_code": gettext_lazy(
        "Find out why before you start again: were they read on the right screen? If so, use another relay or another network."
    ),
    "controller_limit_reached": gettext_lazy(
        "Revoke a controller on its page, or raise AMESH['MAX_CONTROLLERS'], then start again. If you may revoke devices, the form asks which "
        "one the new device replaces."
    ),
}
_STEPS: Final = (
    gettext_lazy("Connect to the relay"),
    gettext_lazy("Use the code on the device"),
    gettext_lazy("Compare the device, and enter its verification code"),
    gettext_lazy("Confirm on the device"),
    gettext_lazy("The device is trusted"),
)
#: Phase → number of the step, and what a screen reader says.
_PHASES: Final[dict[str, tuple[int, str | Promise]]] = {
    "starting": (0, gettext_lazy("Connecting to the relay.")),
    "waiting": (1, gettext_lazy("The one-time code is shown. Run the command on the device.")),
    "matched": (1, gettext_lazy("A device has used the code.")),
    "code": (2, gettext_lazy("A device has come. Compare it, then enter the verification code that it shows.")),
    "checking": (2, gettext_lazy("The verification code is being checked.")),
    "confirm": (3, gettext_lazy("Verified: the code is correct. Now answer the question on the device.")),
    "canceling": (0, gettext_lazy("The pairing is being canceled.")),
    "done": (5, gettext_lazy("The device is paired.")),
    "ended": (-1, gettext_lazy("The pairing has ended. No device was added.")),
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page shows now.

    Attributes:
        phase: a name.
        tag: changes with everything that the page shows.
        error: the reason why the pairing did not succeed, or None.
    """

    phase: str
    tag: str
    error: AmeshError | None

    @property
    def is_over(self) -> bool:
        """True if nothing happens any more."""
        return self.phase in ("done", "ended")

    @property
    def status(self) -> str:
        """The phase in a sentence."""
        return str(_PHASES[self.phase][1])


def show(row: PairingSession) -> Shown:
    """Return what the page of a pairing shows. Costs no query."""
    error = sessions.ended(row)
    phase = _phase(row, error)
    tag = hashlib.sha256(f"{row.mac} {phase} {error.code if error else ''}".encode()).hexdigest()[:32]
    return Shown(phase, tag, error)


def _phase(row: PairingSession, error: AmeshError | None) -> str:
    if row.step == Step.DONE:
        return "done"
    if error is not None:
        return "ended"
    if row.is_canceled:
        return "canceling"
    if row.step == Step.WAITING and not row.code:
        return "matched"
    if row.step == Step.CODE and row.answer:
        return "checking"
    return str(row.step)


def command_of(row: PairingSession) -> str:
    """Return the command for the device."""
    relay = "" if row.relay == DEFAULT_RELAY else f" --relay {shlex.quote(row.relay)}"
    return f"amesh invite {row.code}{relay}"


def context(row: PairingSession, found: Shown, site: str) -> dict[str, Any]:
    """Return what the template of the phase needs.

    Args:
        row: the row.
        found: what :func:`show` has returned for it.
        site: name of the admin site, for links.
    """
    number = _PHASES[found.phase][0]
    steps = [(text, "done" if at < number else "current" if at == number else "") for at, text in enumerate(_STEPS)]
    context: dict[str, Any] = {
        "row": row,
        "shown": found,
        "steps": steps,
        "relay": clean_line(row.relay),
        "is_public": row.relay == DEFAULT_RELAY,
        "tries": MAX_WRONG,
        "try": row.wrong + 1,
        "ends": int(row.ends_at.timestamp()) if row.ends_at else None,
    }
    if found.phase == "waiting":
        command = command_of(row)
        context |= {"command": command, "qr": qr_code(command, _("The command for the device as a QR code"))}
    if found.phase in ("code", "checking", "confirm", "done"):
        context |= {"name": clean(row.name), "device_id": shown.code(row.device_id), **_known(row, found.phase)}
    if found.error is not None:
        context |= {"why": _why(found.error, row, site)}
    if found.phase in ("code", "checking"):
        context["gets"] = described(Chosen.from_json(row.chosen_json))
    return context


def seconds_left(row: PairingSession) -> int:
    """Return the seconds until the phase ends, at least 1."""
    left = (row.ends_at - now()).total_seconds() if row.ends_at is not None else 0
    return max(1, int(left))


def described(chosen: Chosen) -> list[tuple[str, str]]:
    """Return what a device gets: pairs of a label and a text."""
    found = [
        (_("Permissions"), ", ".join(chosen.permissions)),
        (_("Scopes"), ", ".join(chosen.scopes)),
        (_("Groups"), ", ".join(chosen.groups)),
        (_("Expires"), shown.full_time(now() + dt.timedelta(days=chosen.days)) if chosen.days is not None else ""),
        (_("Replaces"), chosen.replaces),
    ]
    if chosen.user:
        user = get_user_model()._default_manager.filter(pk=chosen.user).first()
        found.insert(3, (_("Mapped user"), user.get_username() if user is not None else ""))
    return [(label, clean_line(text)) for label, text in found if text]


def _known(row: PairingSession, phase: str) -> dict[str, Any]:
    """Return what this server and its hubs know about the device that has come."""
    device = Device.objects.using(database()).select_related("user").filter(device_id=row.device_id).first()
    if device is not None:
        verify_shown([device])
    if phase == "done":
        state = shown.state_of(device) if device is not None else None
        details = shown.details(device) if device is not None else ""
        return {"device": device, "is_waiting": state == PENDING, "is_accepted": state == ACTIVE, "details": details}
    notes = []
    if device is not None:
        notes.append(_KNOWN.get(shown.state_of(device), _STAYS))
        notes += [shown.details(device)] if shown.details(device) else []
        if device.user is not None and not shown.is_revoked(device):
            notes.append(_("It acts as %(user)s, as before.") % {"user": clean_line(device.user.get_username())})
    words = fleet.words_about(row.public_key)
    if words:
        notes += [*words, _("Trusting it here counts in spite of that.")]
    return {"notes": notes, "is_denied": device is not None and shown.state_of(device) == DENIED}


_STAYS = gettext_lazy(
    "The device is in the list already. What it was granted is replaced by what was chosen here. Its state stays as it is."
)
_KNOWN: Final[dict[str, str | Promise]] = {
    REVOKED: gettext_lazy("The device was revoked. Pairing it undoes the revocation."),
    DENIED: gettext_lazy("The device was denied, so it cannot be paired. If that was a mistake, approve it first."),
}


def _why(error: AmeshError, row: PairingSession, site: str) -> Any:
    """Return why a pairing did not succeed, and what to do."""
    code = row.error_code or error.code
    if code == "wrong_verification_code":
        message = _(
            "Three verification codes were wrong. If they were typed correctly, this may be an attack. Nothing was stored."
        )
        return format_html("{} {}", message, _HINTS[code])
    if code in _HINTS:
        return format_html("{} {}", html_of(AmeshError(error.message), site), _HINTS[code])
    return html_of(error, site)
