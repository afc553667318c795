"""Every error of bootstrap tokens: its code, its message, and what to do next."""

from __future__ import annotations

from typing import ClassVar

from ..errors import AmeshError, Hint, IdentityMissing, Run
from .errors import PairingError

_MAKE_ANOTHER = "To make a new token, run provision on the controller."


class TokenError(PairingError):
    """The bootstrap token cannot be used."""

    code = "token_error"
    default_message = "This bootstrap token cannot be used."
    default_hint: ClassVar[Hint] = _MAKE_ANOTHER


class InvalidTokenFormat(TokenError):
    """The text is not a bootstrap token, or it is incomplete."""

    code = "invalid_token_format"
    default_message = "This is not a bootstrap token, or it is incomplete."
    default_hint = "Copy the token again, in full. It starts with amesh-bt-v1."


class InvalidTokenType(TokenError):
    """The token has another purpose than bootstrapping a device."""

    code = "invalid_token_type"
    default_message = "This token is not for bootstrapping a device."


class UnsupportedTokenVersion(TokenError):
    """The token has a version that this program cannot read."""

    code = "unsupported_token_version"
    default_message = "This token has a version that this program cannot read."
    default_hint = "Update the older one of the two devices, then make a new token."


class UnsupportedTokenAlgorithm(TokenError):
    """The token is signed with an algorithm that amesh does not use."""

    code = "unsupported_token_alg"
    default_message = "This token is signed with an algorithm that amesh does not use."


class UnsupportedTokenScope(TokenError):
    """The token allows something else than adding a device."""

    code = "unsupported_token_scope"
    default_message = "This token does not allow adding a device."


class TokenMustBeSingleUse(TokenError):
    """The token could be used more than once."""

    code = "token_must_be_single_use"
    default_message = "This token could be used more than once, which is never accepted."


class TokenNotYetValid(TokenError):
    """The time of issue of the token is in the future."""

    code = "token_not_yet_valid"
    default_message = "The time of issue of this token is in the future."
    default_hint = "Synchronize the clocks of both devices with NTP."


class TokenExpired(TokenError):
    """The token has expired."""

    code = "token_expired"
    default_message = "This token has expired."
    default_hint = "To make a new token, run provision on the controller. Also check the clock of this machine."


class InvalidTokenSignature(TokenError):
    """The token was not signed by the device that it names."""

    code = "invalid_signature"
    default_message = "This token was not signed by the device that it names: it is forged or was changed."


class TokenAlreadyUsed(TokenError):
    """The token was used before."""

    code = "token_already_used"
    default_message = "This token has already been used."
    default_hint = (
        "If that was not you, someone else had the token: check the list of the controller. To make a new token, run provision on "
        "the controller."
    )


class InvalidInit(TokenError):
    """Someone asked to be enrolled without proof of holding the token."""

    code = "invalid_proof"
    default_message = "Someone asked to be enrolled without proving that they hold the token. Nothing was stored."
    default_hint = ("If it was your device, make a new token: run ", Run("provision", "--name NAME"), ".")


class InvalidAcknowledgement(TokenError):
    """The answer to the token was not signed by the controller that made the token."""

    code = "invalid_acknowledgement"
    default_message = (
        "The answer to this token was not signed by the controller that made it: someone at the relay forged it. Nothing was "
        "stored."
    )
    default_hint = "To make a new token for another relay, run provision on the controller."


class TokenWithoutKey(TokenError):
    """The token has no secret that the relay does not see."""

    code = "token_without_key"
    default_message = (
        "This token was made by an older program and has no secret that the relay does not see: the relay could enroll any device "
        "with it. Nothing was sent."
    )
    default_hint = (
        "To make a new token, run provision of a current amesh on the controller. If you cannot, and you trust the relay, run ",
        Run("bootstrap", "--v1"),
        ".",
    )


class ProofRequired(TokenError):
    """A device sent the token itself instead of a proof of holding it."""

    code = "proof_required"
    default_message = (
        "A device sent the token itself instead of a proof, as older programs do: the relay has seen the token and could enroll "
        "any device with it. Nothing was stored."
    )
    default_hint = "Update the device. If you cannot, and you trust the relay, use provision --v1 on the controller."


class RelayNotAllowed(TokenError):
    """The token names a relay that is not among the allowed ones."""

    code = "relay_not_allowed"
    default_message = (
        "This token names a relay that is not among the relays allowed on this device. The relay was not contacted."
    )
    default_hint = (
        "Allow the relay (AMESH_BOOTSTRAP_RELAYS, or BOOTSTRAP_RELAYS in the settings of the server), or make a token for another "
        "relay."
    )


class NoWatcher(TokenError):
    """No controller waits for the token at the relay."""

    code = "no_watcher"
    default_message = "No controller waits for this token at the relay. The token is still valid."
    default_hint = "Run provision --resume on the controller that made the token."


class AlreadyWatched(TokenError):
    """Another connection waits for the token at the relay."""

    code = "jti_already_watched"
    default_message = "Another connection waits for this token at the relay: another provision, or one whose connection has just broken."
    default_hint = "Wait until it has ended; this token is tried again."


class TokenNotTaken(TokenError):
    """The relay does not accept the number of the token, or no device waits for the answer any more."""

    code = "invalid_jti"
    default_message = "The relay does not accept the number of this token, or no device waits for the answer any more."


class TokenWithdrawn(TokenError):
    """The controller has withdrawn the token."""

    code = "token_withdrawn"
    default_message = "This token was withdrawn by the controller that made it."


class TokenRefused(TokenError):
    """The controller rejected the token for a reason that this program does not know."""

    code = "token_refused"
    default_message = "The controller, or the relay in its name, rejected this token."
    default_hint = "Look at the screen of the controller. To make a new token, run provision there."


class TokenNotFound(TokenError):
    """There is no such token on this device."""

    code = "token_not_found"
    default_message = "There is no such token on this device."
    default_hint = ("To see the tokens of this device, run ", Run("provision", "--list"), ".")


class BootstrapPending(IdentityMissing):
    """The device is still being enrolled with its bootstrap token."""

    code = "bootstrap_pending"
    default_message = "This device is still being enrolled with its bootstrap token."
    default_hint = "Try again in a moment. The log says what enrollment waits for."


class BootstrapFailed(IdentityMissing):
    """The device could not be enrolled with its bootstrap token, and trying again would not help.

    Args:
        cause: the error that ended enrollment. Its code and its hint are those of this error.
    """

    code = "bootstrap_failed"

    def __init__(self, cause: AmeshError) -> None:
        super().__init__(
            f"This device has no identity, and its bootstrap token could not be used to get one. {cause.message}",
            hint=cause.hint,
        )
        self.args = (cause,)  # so that copy.copy and pickle work
        self.code = cause.code  # type: ignore[misc]  # each cause keeps its own name
