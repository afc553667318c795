"""Every error of pairing: its code, its message, and what to do next. Those of bootstrap tokens are in :mod:`.token_errors`.

Commands to run on this device are data (:class:`authmesh.protocol.errors.Run`), which the front end spells. Commands to run on
the other device are plain text, because its front end may be another one.
"""

from __future__ import annotations

from typing import ClassVar

from ..errors import AmeshError, Hint, Run

_ADDRESS = "Check the address of the relay (--relay, AMESH_RELAY_URL)"


class PairingError(AmeshError):
    """Pairing failed, and nothing was stored unless the error says so."""

    code = "pairing_failed"
    default_message = "Pairing failed. Nothing was stored."
    default_hint: ClassVar[Hint] = "Pair again."


# --- the relay ------------------------------------------------------------------------------------------------------


class InvalidRelayAddress(PairingError):
    """The address of the relay is not an absolute ``ws://`` or ``wss://`` address."""

    code = "invalid_relay_url"
    default_message = "The address of the relay is not valid."
    default_hint = (
        "It starts with wss:// (or ws://), such as wss://relay.example/ws. Correct --relay or AMESH_RELAY_URL."
    )


class RelayUnreachable(PairingError):
    """The relay cannot be reached."""

    code = "relay_unreachable"
    default_message = "The relay cannot be reached."
    default_hint = f"{_ADDRESS} and the network of this machine."


class RelayCertificateNotTrusted(RelayUnreachable):
    """The TLS certificate of the relay is not trusted on this machine."""

    code = "relay_certificate_not_trusted"
    default_message = (
        "The TLS certificate of the relay is not trusted on this machine. Someone may be impersonating the relay."
    )
    default_hint = (
        f"{_ADDRESS} and the clock of this machine. If it is your own relay, install the certificate of its authority."
    )


class RelaySilent(RelayUnreachable):
    """The relay was reached, but does not answer."""

    code = "relay_silent"
    default_message = "The relay was reached, but does not answer."
    default_hint = "Try again, or use another relay (--relay, AMESH_RELAY_URL)."


class RelayClosed(PairingError):
    """The relay closed the connection."""

    code = "relay_closed"
    default_message = "The relay closed the connection. It may have been restarted."


class RelayProtocolViolation(PairingError):
    """The relay sent something that is not part of its protocol."""

    code = "relay_protocol_violation"
    default_message = "The relay sent something that a relay never sends. Nothing was stored."
    default_hint = f"{_ADDRESS}. If it is correct, do not trust this relay and use another."


class MessageTooBig(RelayProtocolViolation):
    """A message was longer than a relay forwards."""

    code = "message_too_big"
    default_message = (
        "A message was longer than the 64 KiB that a relay forwards; devices never send that. Nothing was stored."
    )
    default_hint = "Use another relay."


class RateLimited(PairingError):
    """The relay accepts no more attempts from this address for now."""

    code = "rate_limited"
    default_message = "The relay accepts no more attempts from this address for now."
    default_hint = "Wait a minute, then try again."


class RelayFull(PairingError):
    """The relay has no capacity left."""

    code = "relay_capacity"
    default_message = "The relay has no capacity left."
    default_hint = "Wait a minute, then try again, or use another relay (--relay, AMESH_RELAY_URL)."


class SessionDataLimit(PairingError):
    """The relay ended the pairing because too much data was sent in it."""

    code = "session_data_limit"
    default_message = "The relay ended the pairing because too much data was sent in it. Nothing was stored."


# --- the one-time code ----------------------------------------------------------------------------------------------


class InvalidCode(PairingError):
    """The one-time code does not have the form of one."""

    code = "invalid_otc"
    default_message = "This is not a one-time code: it has six digits, from 100000 to 999999."
    default_hint = "Read the code again on the screen of the target."


class CodeInUse(PairingError):
    """The relay has another pairing with the same one-time code."""

    code = "otc_in_use"
    default_message = "The relay has another pairing with the same one-time code."
    default_hint = ("To get another code, run ", Run("listen"), " again.")


class CodeNotFound(PairingError):
    """The relay does not know the one-time code."""

    code = "otc_not_found"
    default_message = (
        "The relay does not know this one-time code: it was mistyped, is older than 60 seconds, was used, or belongs to another "
        "relay."
    )
    default_hint = "Run listen again on the target, and use the new code here. Use the same relay on both devices."


class CodeTaken(PairingError):
    """Someone else has used the one-time code."""

    code = "peer_already_connected"
    default_message = "Someone else has already used this one-time code."
    default_hint = "If that was not you, run listen again on the target, and keep the new code to yourself."


class NobodyCame(PairingError):
    """No controller came with the one-time code in time."""

    code = "nobody_came"
    default_message = "No controller used the one-time code in time. Nothing was stored."
    default_hint = ("Run ", Run("listen"), " again, and use the new code on the controller within 60 seconds.")


# --- the other device -----------------------------------------------------------------------------------------------


class PeerGone(PairingError):
    """The other device has left."""

    code = "peer_disconnected"
    default_message = (
        "The other device has left: it was closed or interrupted, or its connection broke. Nothing was stored here."
    )


class PeerSilent(PairingError):
    """The other device does not answer."""

    code = "peer_silent"
    default_message = "The other device does not answer. Nothing was stored here."
    default_hint = "Look at its screen, then pair again."


class PeerRefused(PairingError):
    """The other device refused: a wrong verification code was typed there, or its operator declined."""

    code = "peer_refused"
    default_message = "The other device refused: a wrong verification code was typed there, or its operator declined. Nothing was stored here."
    default_hint = "If the code was typed correctly, someone may be between the two devices: pair again over another network or relay."


class PeerSpeaksV1(PairingError):
    """The other device uses version 1 of pairing, and this device requires version 2."""

    code = "peer_speaks_v1"
    default_message = (
        "The other device uses version 1 of pairing, which a malicious relay can break. Nothing was stored."
    )
    default_hint = "Update the other device. If you cannot, and you trust the relay, use --v1 here."


class PeerSpeaksV2(PairingError):
    """The other device uses version 2 of pairing, and this device was told to use version 1."""

    code = "peer_speaks_v2"
    default_message = (
        "The other device uses version 2 of pairing, and this device was told to use version 1. Nothing was stored."
    )
    default_hint = "Omit --v1 here."


class OwnKey(PairingError):
    """The other device has the key of this device."""

    code = "own_key"
    default_message = "The other device has the key of this device: it is this device, or it has a copy of its directory. Nothing was stored."
    default_hint = (
        "Give each device an identity of its own: on one of the two, run ",
        Run("init", "--name NAME --force"),
        ".",
    )


class ClockSkew(PairingError):
    """The clocks of the two devices are more than 60 seconds apart."""

    code = "clock_skew"
    default_message = "The clocks of the two devices are more than 60 seconds apart. Nothing was stored."
    default_hint = "Synchronize both clocks with NTP, then pair again."


class InvalidPayload(PairingError):
    """A message of the other device was damaged or changed on its way."""

    code = "invalid_payload"
    default_message = "A message of the other device was damaged or changed on its way. Nothing was stored."
    default_hint = (
        "Pair again. If it happens again, someone may be between the two devices: use another network or relay."
    )


class CommitmentMismatch(InvalidPayload):
    """The other device did not send the key that it had committed to."""

    code = "commitment_mismatch"
    default_message = (
        "The other device did not send the key that it had committed to, which a device never does: someone is between the two "
        "devices. Nothing was stored."
    )
    default_hint = "Use another relay."


class InvalidSelfSignature(InvalidPayload):
    """The other device did not prove that it holds its key."""

    code = "invalid_self_signature"
    default_message = "The other device did not prove that it holds its key: someone may be between the two devices. Nothing was stored."
    default_hint = "Use another relay."


# --- the operators --------------------------------------------------------------------------------------------------


class WrongVerificationCode(PairingError):
    """The code that was typed is not the verification code of this pairing."""

    code = "wrong_verification_code"
    default_message = (
        "This is not the verification code that the controller shows. If it was typed correctly, someone is between the two "
        "devices: this may be an attack. Nothing was stored."
    )
    default_hint = "Pair again, if possible over another relay."


class PairingDeclined(PairingError):
    """The operator of this device declined."""

    code = "declined"
    default_message = "Declined. Nothing was stored here."
    default_hint = ""


class TookTooLong(PairingError):
    """The operator of this device did not answer in time."""

    code = "took_too_long"
    default_message = "There was no answer in time, and the other device has stopped waiting. Nothing was stored."


class StoreFailed(PairingError):
    """The other device could not be stored on this device."""

    code = "store_failed"
    default_message = "The other device could not be stored here."
    default_hint = "The error before this one has the reason."


class NotConfirmed(PairingError):
    """The target was stored on this device, but did not confirm that it has stored this device."""

    code = "not_confirmed"
    default_message = (
        "This device lists the other device as target now, but the other device did not confirm that it lists this one."
    )
    default_hint = "Run list on the other device. If this device is missing there, pair again."
