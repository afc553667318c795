"""Every error of enrollment at a server: its code, its HTTP status, its message, and what to do next (docs/fleet.md)."""

from __future__ import annotations

from typing import ClassVar

from .errors import AmeshError, Hint, RequestError, Run

#: What is known about a request that was sent and not answered.
UNKNOWN = "It is not known whether the server has carried out the request."
_MAKE_ANOTHER = "Ask the administrator of the server for a new token."


class EnrollmentError(AmeshError):
    """This machine was not enrolled, for a reason that it found itself."""

    code = "enrollment_error"
    default_message = "This machine was not enrolled."
    default_hint: ClassVar[Hint] = _MAKE_ANOTHER


class NotAnEnrollmentToken(EnrollmentError):
    """The text is not an enrollment token, or it is incomplete."""

    code = "not_an_enrollment_token"
    default_message = "This is not an enrollment token, or it is incomplete. Nothing was sent."
    default_hint = "Copy the token again, in full. It starts with amesh-et-v1."


class UnverifiedAnswer(EnrollmentError):
    """The answer was not signed by the server that made the token."""

    code = "unverified_answer"
    default_message = "The answer was not signed by the server that made the token. Nothing was stored."
    default_hint = (
        "Check the address in the token, and that nothing between this machine and the server rewrites answers."
    )


class ServerUnreachable(EnrollmentError):
    """The server did not answer, or could not answer now. A later attempt may succeed."""

    code = "server_unreachable"
    default_message = f"The server did not answer. {UNKNOWN}"
    default_hint = "Check the network, then try again. A later attempt continues with the same key."


class UnexpectedAnswer(EnrollmentError):
    """The server answered with something that is not part of the protocol."""

    code = "unexpected_answer"
    default_message = f"The server gave an answer that is not part of the protocol. {UNKNOWN}"
    default_hint = "Check the address in the token: the project must include amesh_django.urls there."


# --- refusals of the server -----------------------------------------------------------------------------------------


class EnrollmentRefused(RequestError):
    """The server refuses to enroll a machine. Callers see ``code`` and ``status`` only."""

    code = "enrollment_refused"
    status = 403
    default_message = "The server refused to enroll this machine."
    default_hint: ClassVar[Hint] = "The log of the server has the reason."


class MalformedEnrollment(EnrollmentRefused):
    """The body is not the JSON of an enrollment or a rotation."""

    code = "malformed_request"
    status = 400
    default_message = "The body of the request is not what the protocol requires. Nothing was changed."
    default_hint = "Update the older one of the two, this machine or the server."


class InvalidEnrollmentToken(EnrollmentRefused):
    """The server has no such token, or the proof is wrong. There is one answer for both."""

    code = "invalid_token"
    status = 401
    default_message = "The server does not accept this token. Nothing was changed."
    default_hint = _MAKE_ANOTHER


class EnrollmentTokenExpired(EnrollmentRefused):
    """The token has expired."""

    code = "token_expired"
    default_message = "The enrollment token has expired. Nothing was changed."
    default_hint = _MAKE_ANOTHER


class EnrollmentTokenUsedUp(EnrollmentRefused):
    """As many machines as the token allows have enrolled with it."""

    code = "token_used_up"
    default_message = (
        "The enrollment token is used up: as many machines as it allows have enrolled. Nothing was changed."
    )
    default_hint = _MAKE_ANOTHER


class EnrollmentTokenWithdrawn(EnrollmentRefused):
    """A person withdrew the token."""

    code = "token_withdrawn"
    default_message = "The enrollment token was withdrawn. Nothing was changed."
    default_hint = _MAKE_ANOTHER


class KeyDenied(EnrollmentRefused):
    """The server does not accept this key: a person decided against it, it has expired, or it has another role."""

    code = "key_denied"
    default_message = (
        "The server does not accept the key of this machine: it was revoked, suspended, or denied there, has expired, or has another role. "
        "Nothing was changed."
    )
    default_hint: ClassVar[Hint] = (
        "A person must trust the device again on the server. To enroll with a new key instead, run ",
        Run("init", "--name NAME --force"),
        " first.",
    )


class MaxControllers(EnrollmentRefused):
    """The server trusts as many controllers as its limit allows."""

    code = "max_controllers"
    status = 409
    default_message = "The server trusts as many controllers as its limit allows. Nothing was changed."
    default_hint = "Raise the limit on the server, or revoke devices there. Then try again with the same token."


class EnrollmentRateLimited(EnrollmentRefused):
    """Too many attempts came from this address, or with this token."""

    code = "too_many_attempts"
    status = 429
    retry_after = 60
    default_message = "The server received too many attempts. Nothing was changed."
    default_hint = "Try again in a minute."


class ServerBusy(EnrollmentRefused):
    """Other changes of the allow list kept the server busy."""

    code = "server_busy"
    status = 503
    default_message = "The server was busy with other changes. Nothing was changed."
    default_hint = "Try again in a moment."
