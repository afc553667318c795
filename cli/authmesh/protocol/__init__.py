"""The amesh protocol as pure functions: bytes and values in, bytes and values out; no I/O, no clock, no Django.

From the outside in: :mod:`.schemes` and :mod:`.header` make a signed request, :mod:`.canonical` is what its signature covers;
:mod:`.allow_list` is the sealed list, :mod:`.seal` its seal; :mod:`.keys` and :mod:`.encoding` are below all of them. Codes,
ceremony messages and bootstrap tokens are in :mod:`.pairing`, the errors in :mod:`.errors`.
"""

from .allow_list import CONTROLLER, TARGET, DeviceEntry, Role, open_document, seal_document
from .canonical import canonical_query, canonical_string, target_ambiguity
from .encoding import b64decode, b64encode, b64url_decode, b64url_encode, format_time, parse_time
from .errors import (
    AllowListError,
    AllowListIntegrityFailure,
    AllowListUnavailable,
    AmeshError,
    BodyParserOrderingError,
    BodyStorageUnavailable,
    InvalidInput,
    KeyStoreError,
    MalformedHeader,
    MissingHeader,
    NonceStoreUnavailable,
    PayloadTooLarge,
    RequestError,
    TimestampOutOfRange,
    Unauthorized,
    UnsupportedVersion,
)
from .header import Authorization, build_authorization, parse_authorization
from .keys import (
    decode_public_key,
    device_id,
    encode_public_key,
    generate_private_key,
    load_private_key,
    load_public_key,
    public_key_bytes,
    sign,
    signature_from_der,
    verify_signature,
)
from .schemes.base import Scheme
from .schemes.registry import SCHEMES
from .seal import canonical_json, seal, seal_key, verify_seal

__all__ = [
    "CONTROLLER",
    "SCHEMES",
    "TARGET",
    "AllowListError",
    "AllowListIntegrityFailure",
    "AllowListUnavailable",
    "AmeshError",
    "Authorization",
    "BodyParserOrderingError",
    "BodyStorageUnavailable",
    "DeviceEntry",
    "InvalidInput",
    "KeyStoreError",
    "MalformedHeader",
    "MissingHeader",
    "NonceStoreUnavailable",
    "PayloadTooLarge",
    "RequestError",
    "Role",
    "Scheme",
    "TimestampOutOfRange",
    "Unauthorized",
    "UnsupportedVersion",
    "b64decode",
    "b64encode",
    "b64url_decode",
    "b64url_encode",
    "build_authorization",
    "canonical_json",
    "canonical_query",
    "canonical_string",
    "decode_public_key",
    "device_id",
    "encode_public_key",
    "format_time",
    "generate_private_key",
    "load_private_key",
    "load_public_key",
    "open_document",
    "parse_authorization",
    "parse_time",
    "public_key_bytes",
    "seal",
    "seal_document",
    "seal_key",
    "sign",
    "signature_from_der",
    "target_ambiguity",
    "verify_seal",
    "verify_signature",
]
