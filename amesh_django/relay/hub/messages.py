"""The messages of the relay: parses and writes JSON text frames. The relay does not look into a payload."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

#: Maximum length of the name of a bootstrap token.
MAX_JTI_LENGTH: Final = 128

_SIX_DIGITS = re.compile("[0-9]{6}").fullmatch
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class InvalidMessage(Exception):
    """A message does not have the form that the protocol demands.

    Attributes:
        code: the error code for the client; one of protocol.md §6 and §7.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Message(NamedTuple):
    """A message of a client.

    Attributes:
        kind: its ``type``.
        key: the one-time code, or the name of the token, that the message is about; "" if there is none.
        frame: the frame to forward to the other side; "" if there is none.
    """

    kind: str
    key: str = ""
    frame: str = ""

    def __repr__(self) -> str:
        """Leave out code and payload, because this text may get into a log."""
        return f"Message({self.kind})"


def parse(text: str) -> Message:
    """Parse a text frame.

    Raises:
        InvalidMessage: the text is not a JSON object, or not a message that a client may send.
    """
    try:
        value = _decode(text)
    except (ValueError, RecursionError):
        raise InvalidMessage("invalid_message") from None
    if type(value) is not dict:
        raise InvalidMessage("invalid_message")
    kind = value.get("type")
    read = _READERS.get(kind) if isinstance(kind, str) else None
    if read is None:
        raise InvalidMessage("unknown_type")
    return read(value)


def _no_json(constant: str) -> NoReturn:
    raise ValueError(constant)


_decode: Callable[[str], Any] = json.JSONDecoder(parse_constant=_no_json).decode
_encode: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _dump(value: str | dict[str, str]) -> str:
    """Return JSON that is never longer than the JSON that the value was read from, so that it stays below MAX_MESSAGE_BYTES."""
    text = _encode(value)
    if text.isascii():
        return text
    return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def _one_time_code(value: dict[str, Any]) -> Message:
    code = value.get("otc")
    if not isinstance(code, str) or not _SIX_DIGITS(code):
        raise InvalidMessage("invalid_otc")
    return Message(value["type"], code)


def _data(value: dict[str, Any]) -> Message:
    return Message("data", "", f'{{"type":"data","payload":{_dump(_text(value, "payload"))}}}')


def _done(value: dict[str, Any]) -> Message:
    return Message("done", "", DONE)


def _jti(value: dict[str, Any]) -> str:
    jti = value.get("jti")
    if jti is None or jti == "":
        raise InvalidMessage("missing_jti")
    if not isinstance(jti, str) or len(jti) > MAX_JTI_LENGTH or _LONE_SURROGATE.search(jti):
        raise InvalidMessage("invalid_jti")
    return jti


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise InvalidMessage("invalid_message")
    return text


def _watch(value: dict[str, Any]) -> Message:
    return Message("bootstrap_watch", _jti(value))


def _init(value: dict[str, Any]) -> Message:
    # The TypeScript implementation sends the token itself; this one sends a proof and a signature instead.
    jti = _jti(value)
    names = ["targetPubKey", *(name for name in ("token", "proof", "targetSig") if name in value)]
    forwarded = {"type": "bootstrap_init", "jti": jti, **{name: _text(value, name) for name in names}}
    if "token" not in forwarded and "proof" not in forwarded:
        raise InvalidMessage("invalid_message")
    return Message("bootstrap_init", jti, _dump(forwarded))


def _ack(value: dict[str, Any]) -> Message:
    jti = _jti(value)
    forwarded = {"type": "bootstrap_ack", "jti": jti, "controllerPubKey": _text(value, "publicKey")}
    if "controllerSig" in value:
        forwarded["controllerSig"] = _text(value, "controllerSig")
    return Message("bootstrap_ack", jti, _dump(forwarded))


def _reject(value: dict[str, Any]) -> Message:
    jti = _jti(value)
    return Message(
        "bootstrap_reject", jti, _dump({"type": "bootstrap_reject", "jti": jti, "error": _text(value, "error")})
    )


_READERS: Final[dict[str, Callable[[dict[str, Any]], Message]]] = {
    "listen": _one_time_code,
    "connect": _one_time_code,
    "data": _data,
    "done": _done,
    "bootstrap_watch": _watch,
    "bootstrap_init": _init,
    "bootstrap_ack": _ack,
    "bootstrap_reject": _reject,
}

SESSION_OPEN: Final = '{"type":"ack","message":"session_open"}'
PEER_FOUND: Final = '{"type":"peer_found"}'
DONE: Final = '{"type":"done"}'


def error(code: str) -> str:
    """Return the relay's ``error``."""
    return f'{{"type":"error","code":"{code}"}}'


def watching(jti: str) -> str:
    """Return the relay's answer to ``bootstrap_watch``."""
    return _dump({"type": "bootstrap_watching", "jti": jti})


def rejected(code: str) -> str:
    """Return the relay's own ``bootstrap_reject``."""
    return f'{{"type":"bootstrap_reject","error":"{code}"}}'


def length(text: str) -> int:
    """Return the number of bytes of a frame on the wire."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
