"""The sentences of the log, such as “anna revoked till-berlin-04: sold to a broker”. Each is whole, so that it can be translated.

:mod:`.telling` chooses the sentence of an event, and says what its placeholders stand for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

Text = str | Promise


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence in its forms.

    Attributes:
        by: for an event with an author.
        alone: for one without.
        by_why: for one with an author and a reason. If empty, the sentence has no reason.
        alone_why: for one with a reason and without an author.
    """

    by: Text
    alone: Text
    by_why: Text = ""
    alone_why: Text = ""

    def form(self, *, has_author: bool, has_reason: bool) -> Text:
        """Return the form for an event."""
        with_reason = self.by_why if has_author else self.alone_why
        return with_reason if has_reason and with_reason else self.by if has_author else self.alone


def _same(text: Text) -> Sentence:
    return Sentence(text, text)


#: Kind of an event, or kind and variant → its sentence.
SENTENCES: Final[dict[str, Sentence]] = {
    "trust": Sentence(_("%(by)s added %(device)s"), _("%(device)s was added")),
    "trust token": _same(_("%(device)s was enrolled with the %(by)s")),
    "trust pending": Sentence(
        _("%(by)s added %(device)s, which waits for approval"), _("%(device)s was added, and waits for approval")
    ),
    "trust token pending": _same(_("%(device)s was enrolled with the %(by)s, and waits for approval")),
    "approve": Sentence(_("%(by)s approved %(device)s"), _("%(device)s was approved")),
    "deny": Sentence(
        _("%(by)s denied %(device)s"),
        _("%(device)s was denied"),
        _("%(by)s denied %(device)s: %(why)s"),
        _("%(device)s was denied: %(why)s"),
    ),
    "change": Sentence(_("%(by)s changed %(device)s"), _("%(device)s was changed")),
    "grant": Sentence(_("%(by)s changed what %(device)s may do"), _("What %(device)s may do was changed")),
    "scope": Sentence(_("%(by)s changed the scopes of %(device)s"), _("The scopes of %(device)s were changed")),
    "group": Sentence(_("%(by)s changed the groups of %(device)s"), _("The groups of %(device)s were changed")),
    "group put": Sentence(
        _("%(by)s gave the group %(name)s these scopes: %(scopes)s"),
        _("The group %(name)s was given these scopes: %(scopes)s"),
    ),
    "group removed": Sentence(_("%(by)s removed the group %(name)s"), _("The group %(name)s was removed")),
    "map": Sentence(_("%(by)s mapped %(device)s to a user"), _("%(device)s was mapped to a user")),
    "map removed": Sentence(_("%(by)s removed the user of %(device)s"), _("The user of %(device)s was removed")),
    "expire": Sentence(
        _("%(by)s lets the key of %(device)s expire %(until)s"), _("The key of %(device)s will expire %(until)s")
    ),
    "expire removed": Sentence(
        _("%(by)s lets the key of %(device)s expire at no time"), _("The key of %(device)s will expire at no time")
    ),
    "suspend": Sentence(
        _("%(by)s suspended %(device)s"),
        _("%(device)s was suspended"),
        _("%(by)s suspended %(device)s: %(why)s"),
        _("%(device)s was suspended: %(why)s"),
    ),
    "suspend until": Sentence(
        _("%(by)s suspended %(device)s until %(until)s"),
        _("%(device)s was suspended until %(until)s"),
        _("%(by)s suspended %(device)s until %(until)s: %(why)s"),
        _("%(device)s was suspended until %(until)s: %(why)s"),
    ),
    "lift": Sentence(_("%(by)s lifted the suspension of %(device)s"), _("The suspension of %(device)s was lifted")),
    "revoke": Sentence(
        _("%(by)s revoked %(device)s"),
        _("%(device)s was revoked"),
        _("%(by)s revoked %(device)s: %(why)s"),
        _("%(device)s was revoked: %(why)s"),
    ),
    "reinstate": Sentence(_("%(by)s reinstated %(device)s"), _("%(device)s was reinstated")),
    "rotate": _same(_("%(device)s has a new key")),
    "rotate old": _same(_("%(device)s replaced its key: the old one is accepted until %(until)s")),
    "purge": Sentence(_("%(by)s purged %(device)s"), _("%(device)s was purged")),
    "begin": _same(_("The audit log was begun. Devices in the allow list: %(count)s")),
    "reseal": Sentence(
        _("%(by)s resealed the allow list, and accepted it as it was. Devices: %(count)s"),
        _("The allow list was resealed, and accepted as it was. Devices: %(count)s"),
    ),
    "reseal more": Sentence(
        _("%(by)s resealed the allow list: further devices"), _("The allow list was resealed: further devices")
    ),
    "rekey": Sentence(
        _("%(by)s sealed the allow list and the audit log with another secret"),
        _("The allow list and the audit log were sealed with another secret"),
    ),
    "archive": Sentence(
        _("%(by)s moved the events %(first)s to %(last)s to the file %(file)s"),
        _("The events %(first)s to %(last)s were moved to the file %(file)s"),
    ),
    "archive more": Sentence(
        _("%(by)s archived events: further devices that they were about"),
        _("Events were archived: further devices that they were about"),
    ),
    "token_made": Sentence(
        _("%(by)s made the enrollment token %(token)s"), _("The enrollment token %(token)s was made")
    ),
    "token_used": _same(_("%(device)s used the enrollment token %(token)s")),
    "token_withdrawn": Sentence(
        _("%(by)s withdrew the enrollment token %(token)s"), _("The enrollment token %(token)s was withdrawn")
    ),
    "pairing_begun": Sentence(
        _("%(by)s began to pair this server with a device"), _("A pairing of this server with a device was begun")
    ),
    "pairing_failed": Sentence(
        _("%(by)s did not pair this server with a device"),
        _("A pairing of this server with a device failed"),
        _("%(by)s did not pair this server with a device: %(why)s"),
        _("A pairing of this server with a device failed: %(why)s"),
    ),
    "export": Sentence(_("%(by)s exported %(name)s"), _("%(name)s was exported")),
    "export allow list": Sentence(_("%(by)s exported the allow list"), _("The allow list was exported")),
    "export audit log": Sentence(_("%(by)s exported the audit log"), _("The audit log was exported")),
    "export signed list of revocations": Sentence(
        _("%(by)s exported the signed list of revocations"), _("The signed list of revocations was exported")
    ),
    "verified": Sentence(
        _("%(by)s verified the audit log: it is as amesh wrote it. Events: %(count)s"),
        _("The audit log was verified: it is as amesh wrote it. Events: %(count)s"),
        _("%(by)s verified the audit log: it has a fault: %(why)s"),
        _("The audit log was verified: it has a fault: %(why)s"),
    ),
    "verified after": Sentence(
        _("%(by)s verified the audit log after event %(after)s: it is as amesh wrote it. Events: %(count)s"),
        _("The audit log was verified after event %(after)s: it is as amesh wrote it. Events: %(count)s"),
        _("%(by)s verified the audit log after event %(after)s: it has a fault: %(why)s"),
        _("The audit log was verified after event %(after)s: it has a fault: %(why)s"),
    ),
    "checkpoint": _same(_("This server signed that the audit log ended with event %(last)s")),
    "setting": _same(_("These settings were changed: %(name)s")),
    "setting first": _same(_("The settings were noted for the first time")),
    "delivery": _same(_("The server %(server)s was told of the changes up to %(until)s")),
    "delivery list": _same(_("The server %(server)s was sent the whole list of revocations")),
    "delivery_failed": Sentence(
        _("The server %(server)s could not be told of changes"),
        _("The server %(server)s could not be told of changes"),
        _("The server %(server)s could not be told of changes: %(why)s"),
        _("The server %(server)s could not be told of changes: %(why)s"),
    ),
    "feed_refused": Sentence(
        _("A message of the hub %(hub)s was refused"),
        _("A message of the hub %(hub)s was refused"),
        _("A message of the hub %(hub)s was refused: %(why)s"),
        _("A message of the hub %(hub)s was refused: %(why)s"),
    ),
    "hub_held": _same(
        _("The hub %(hub)s changed %(count)s devices in a minute, which is the limit. Its other changes wait")
    ),
    "hub_forgotten": Sentence(
        _("%(by)s removed what the former hub %(hub)s had said"), _("What the former hub %(hub)s had said was removed")
    ),
    "server": Sentence(_("%(by)s changed the server %(server)s"), _("The server %(server)s was changed")),
    "server added": Sentence(_("%(by)s added the server %(server)s"), _("The server %(server)s was added")),
    "server removed": Sentence(_("%(by)s removed the server %(server)s"), _("The server %(server)s was removed")),
    "server paused": Sentence(_("%(by)s paused the server %(server)s"), _("The server %(server)s was paused")),
    "server resumed": Sentence(_("%(by)s resumed the server %(server)s"), _("The server %(server)s was resumed")),
    "refusal": _same(_("Requests of %(device)s were refused (%(why)s). Number: %(count)s")),
    "refusal address": _same(_("Requests of %(device)s from %(address)s were refused (%(why)s). Number: %(count)s")),
}
#: Any other kind: one of a later version.
OTHER: Final = Sentence(_("%(by)s: %(kind)s"), _("An event of the kind %(kind)s"))
DAMAGED: Final = _("This event was damaged outside Django, and cannot be read")
FORGED: Final = _("Amesh did not write this event: do not trust it. It claims to be: %(kind)s")
