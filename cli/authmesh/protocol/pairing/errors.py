"""How pairing and bootstrap tokens fail: for each a code, and a sentence for people that says what to do.

What stands in a docstring is what the person at the terminal reads.
"""

from __future__ import annotations

from ..errors import AmeshError, IdentityMissing


class PairingError(AmeshError):
    """Pairing failed and nothing was stored. Try again on both sides."""

    code = "pairing_failed"

    def __init__(self, message: str = "") -> None:
        super().__init__(message or " ".join((type(self).__doc__ or self.code).split()))


# --- the relay ------------------------------------------------------------------------------------------------------


class InvalidRelayAddress(PairingError):
    """This is not the address of a relay: that begins with wss:// (or ws://), such as wss://relay.example/ws. Correct
    --relay or AMESH_RELAY_URL."""

    code = "invalid_relay_url"


class RelayUnreachable(PairingError):
    """The relay can't be reached. Check the address (--relay, AMESH_RELAY_URL) and this machine's network."""

    code = "relay_unreachable"


class RelayCertificateNotTrusted(RelayUnreachable):
    """The relay's TLS certificate is not trusted here. Check the address and this machine's clock; for a relay of your own,
    install the certificate of its authority. Someone may be pretending to be the relay."""

    code = "relay_certificate_not_trusted"


class RelaySilent(RelayUnreachable):
    """The relay was reached but does not answer. Try again, or choose another relay (--relay, AMESH_RELAY_URL)."""

    code = "relay_silent"


class RelayClosed(PairingError):
    """The relay closed the connection. It may have been restarted; pair again."""

    code = "relay_closed"


class RelayProtocolViolation(PairingError):
    """The relay sent something that no relay sends. Check the address; if it is right, do not trust this relay and use
    another. Nothing was stored."""

    code = "relay_protocol_violation"


class MessageTooBig(RelayProtocolViolation):
    """A message was over the 64 KiB that a relay forwards. No device sends that: use another relay. Nothing was stored."""

    code = "message_too_big"


class RateLimited(PairingError):
    """The relay takes no more tries from this address for now. Wait a minute, then try again."""

    code = "rate_limited"


class RelayFull(PairingError):
    """The relay is full. Wait a minute and try again, or choose another relay (--relay, AMESH_RELAY_URL)."""

    code = "relay_capacity"


class SessionDataLimit(PairingError):
    """The relay ended the pairing because too much was sent in it. Nothing was stored; pair again."""

    code = "session_data_limit"


# --- the one-time code ----------------------------------------------------------------------------------------------


class InvalidCode(PairingError):
    """The one-time code has six digits, from 100000 to 999999. Read it again where listen shows it."""

    code = "invalid_otc"


class CodeInUse(PairingError):
    """The relay has another pairing under the same code. Run listen again: it takes a new one."""

    code = "otc_in_use"


class CodeNotFound(PairingError):
    """The relay does not know this code: mistyped, older than 60 seconds, used up, or from another relay. Run listen again
    and give the new code, to the same relay on both sides."""

    code = "otc_not_found"


class CodeTaken(PairingError):
    """Someone else has used this code already. If that was not you: run listen again, and keep the new code to yourself."""

    code = "peer_already_connected"


class NobodyCame(PairingError):
    """Nobody came with the code in time. Run listen again and give the new code to the other side: it lives 60 seconds."""

    code = "nobody_came"


# --- the other side -------------------------------------------------------------------------------------------------


class PeerGone(PairingError):
    """The other side has gone: closed, interrupted, or its connection broke. Nothing was stored here; pair again."""

    code = "peer_disconnected"


class PeerSilent(PairingError):
    """The other side does not answer. Nothing was stored here; look at its screen, then pair again."""

    code = "peer_silent"


class PeerRefused(PairingError):
    """The other side said no: a wrong verification code was typed there, or its operator declined. Nothing was stored here. If
    the code was typed right, someone may be between the two devices: pair again over another network or relay."""

    code = "peer_refused"


class PeerSpeaksV1(PairingError):
    """The other side speaks version 1 of pairing, which a malicious relay can break. Update it. If you must and trust the
    relay, say --v1 here. Nothing was stored."""

    code = "peer_speaks_v1"


class PeerSpeaksV2(PairingError):
    """The other side speaks version 2 of pairing, and this one was told to speak version 1. Leave --v1 out here. Nothing was
    stored."""

    code = "peer_speaks_v2"


class OwnKey(PairingError):
    """The other side has this device's own key: it is this very device, or a copy of its directory. Give each device an
    identity of its own (init). Nothing was stored."""

    code = "own_key"


class ClockSkew(PairingError):
    """The clocks of the two devices are more than 60 seconds apart. Set both by NTP, then pair again. Nothing was stored."""

    code = "clock_skew"


class InvalidPayload(PairingError):
    """A message of the other side was damaged or changed on the way. Nothing was stored. Pair again; if it comes back, someone
    may be between the two devices: use another relay."""

    code = "invalid_payload"


class CommitmentMismatch(InvalidPayload):
    """The other side did not keep to the key that it had committed to. No amesh does that: someone is between the two
    devices. Nothing was stored; use another relay."""

    code = "commitment_mismatch"


class InvalidSelfSignature(InvalidPayload):
    """The other side could not prove that its key is its own. Someone may be between the two devices. Nothing was stored; use
    another relay."""

    code = "invalid_self_signature"


# --- the people -----------------------------------------------------------------------------------------------------


class WrongVerificationCode(PairingError):
    """This is not the verification code of the controller's screen. If it was typed right, someone is between the two devices:
    this may be an attack. Nothing was stored; pair again, if need be over another relay."""

    code = "wrong_verification_code"


class PairingDeclined(PairingError):
    """Declined. Nothing was stored here."""

    code = "declined"


class TookTooLong(PairingError):
    """That took too long: the other side has given up by now. Nothing was stored; pair again."""

    code = "took_too_long"


class StoreFailed(PairingError):
    """The other device could not be stored here. The error before says why."""

    code = "store_failed"


class NotConfirmed(PairingError):
    """This device lists the other one as target now, but the other one did not say that it lists this device. Look there
    (list): if this device is missing, pair again."""

    code = "not_confirmed"


# --- bootstrap tokens -----------------------------------------------------------------------------------------------


class TokenError(PairingError):
    """This bootstrap token can't be used. Make a new one: provision."""

    code = "token_error"


class InvalidTokenFormat(TokenError):
    """This is not a bootstrap token, or not all of it. Copy it again, in full; it begins with amesh-bt-v1."""

    code = "invalid_token_format"


class InvalidTokenType(TokenError):
    """This token is for something else than bootstrapping a device. Make one with provision."""

    code = "invalid_token_type"


class UnsupportedTokenVersion(TokenError):
    """This token has a version that this amesh does not read. Update the older side, then make a new token."""

    code = "unsupported_token_version"


class UnsupportedTokenAlgorithm(TokenError):
    """This token is signed in a way that amesh does not use. Make one with provision."""

    code = "unsupported_token_alg"


class UnsupportedTokenScope(TokenError):
    """This token allows something else than adding a device. Make one with provision."""

    code = "unsupported_token_scope"


class TokenMustBeSingleUse(TokenError):
    """This token could be used more than once, which is never accepted. Make one with provision."""

    code = "token_must_be_single_use"


class TokenNotYetValid(TokenError):
    """This token was made in the future. Set the clocks of both devices by NTP."""

    code = "token_not_yet_valid"


class TokenExpired(TokenError):
    """This token has expired. Make a new one with provision, and check this machine's clock."""

    code = "token_expired"


class InvalidTokenSignature(TokenError):
    """This token was not signed by the device that it names: it is forged or was changed. Make a new one with provision."""

    code = "invalid_signature"


class TokenAlreadyUsed(TokenError):
    """This token has been used. If that was not you, someone else had it: look at the controller's list. Make a new one with
    provision."""

    code = "token_already_used"


class InvalidInit(TokenError):
    """Someone asked to be enrolled without proving that they hold the token. Nothing was stored. If it was your device, make a
    new token with provision."""

    code = "invalid_proof"


class InvalidAcknowledgement(TokenError):
    """The answer to this token was not signed by the controller that made it: the relay, or someone there, made it up. Nothing
    was stored; make a new token, for another relay."""

    code = "invalid_acknowledgement"


class TokenWithoutKey(TokenError):
    """This token has no secret of its own, so the relay, which sees all of it, could enrol whom it likes. It was made by an older
    program: make one with provision of this one. If you must and trust the relay, say bootstrap --v1."""

    code = "token_without_key"


class ProofRequired(TokenError):
    """A device came with the token itself and without proof, as older programs do: the relay has seen the token by now, and could
    enrol whom it likes. Nothing was stored. Update the device; if you must and trust the relay, say provision --v1."""

    code = "proof_required"


class RelayNotAllowed(TokenError):
    """This token names a relay that is not among those allowed here. It was not dialled. Allow it (AMESH_BOOTSTRAP_RELAYS, or
    AMESH["BOOTSTRAP_RELAYS"] in Django), or make a token for another relay."""

    code = "relay_not_allowed"


class NoWatcher(TokenError):
    """Nobody waits for this token at the relay. Run provision --resume on the device that made it; the token is still good."""

    code = "no_watcher"


class AlreadyWatched(TokenError):
    """Another connection waits for this token at the relay: another provision, or one whose connection broke just now."""

    code = "jti_already_watched"


class TokenNotTaken(TokenError):
    """The relay does not take this token's number, or nobody waits for the answer any more."""

    code = "invalid_jti"


class TokenWithdrawn(TokenError):
    """This token was withdrawn by the device that made it. Make a new one with provision."""

    code = "token_withdrawn"


class TokenRefused(TokenError):
    """The controller, or the relay in its name, refused this token. Look at the controller's screen; make a new token with
    provision."""

    code = "token_refused"


class TokenNotFound(TokenError):
    """There is no such token. provision --list shows those that there are."""

    code = "token_not_found"


class BootstrapPending(IdentityMissing):
    """This device is still being enrolled with its bootstrap token. Try again in a moment; the log says what it waits for."""

    code = "bootstrap_pending"


class BootstrapFailed(IdentityMissing):
    """This device could not be enrolled with its bootstrap token, and trying again would not help.

    Args:
        why: what ended it. Its code is this error's code.
    """

    code = "bootstrap_failed"

    def __init__(self, why: AmeshError) -> None:
        super().__init__(f"This device has no identity, and its bootstrap token did not give it one. {why}")
        self.code = why.code  # type: ignore[misc]  # each cause keeps its own name
