"""Verification: a request becomes a verified device, or is rejected with an error that says why (protocol.md §3).

A request runs through this folder from the outside in:

1. :mod:`.request` is the entrance: ``authenticate(request)`` for the REST framework class, ``accept(request)`` for the middleware
   and the decorator. It logs the result and sets ``request.amesh``. The parts of the request come from :mod:`.target` (the raw
   path and query) and :mod:`.body` (the SHA-256 of the raw body); what both need of Django's private parts is in :mod:`.private`.
2. :mod:`.lookup` has the verifier that the settings describe, and finds a public key in the sealed list of the database. What must
   happen before that is connected to :mod:`.hooks`: a server asks its hubs.
3. :mod:`.verifier` does the steps of protocol.md §3. **The signature is checked in** :meth:`.Verifier.verify`, and nowhere else.

Beside this path:

- :mod:`.nonces` stores nonces, in a Django cache or in memory; the verifier asks it last.
- :mod:`.eviction` asks the Redis of the nonces whether it deletes entries.
- :mod:`.activity` writes "last seen" of a device after the response.
- :mod:`.users` is the user object of a device that is not mapped to a Django user.
- :mod:`.types` has the types that pass between these modules: :class:`.VerifiedDevice`, :class:`.TrustedKey`, :class:`.NonceStore`.

Every rejection is a :class:`~authmesh.protocol.errors.RequestError`. The caller sees its ``status`` and ``code`` only; the log gets
its ``reason``, too. Where each is raised:

========================== ====== =============================================================================================
error                      status raised by
========================== ====== =============================================================================================
MissingHeader              400    ``Verifier.verify``: the request is not signed
MalformedHeader            400    ``parse_authorization`` (authmesh.protocol.header), called by ``Verifier.verify``
UnsupportedVersion         400    ``Verifier.verify``: no scheme has the version of the header
Unauthorized               401    ``Verifier.verify``: key, role, target, signature or nonce; ``body_hash``: the body is cut off
                                  or cannot be read, or is too large and did not declare its length;
                                  ``authenticate``: Django would read the path or the query in another way than it was signed
                                  ``raw_target``: the path lacks PROXY_ADDED_PREFIX, or the query was rewritten
TimestampOutOfRange        401    ``Verifier.verify``: the signature is valid, but the clock of the device is wrong
UserRequired               403    ``AmeshAuthentication``: the device is not mapped to a Django user, and a user is required
ScopeMissing               403    ``accept``: the device lacks a scope that the middleware or the decorator requires
PayloadTooLarge            413    ``check_before_lookup``: the body is larger than ``AMESH["MAX_BODY_BYTES"]``
AllowListIntegrityFailure  500    ``database_lookup``: the list does not match its seal, or the identity or the key cannot be
                                  used; ``authenticate``: ``AMESH`` is wrong
AllowListUnavailable       503    ``database_lookup``: the database cannot be read
BodyParserOrderingError    500    ``check_before_lookup``: something read the body before it was verified
BodyStorageUnavailable     503    ``body_hash``: no disk space for the body
NonceStoreUnavailable      503    the nonce store, called by ``Verifier.verify``: it is full or cannot be reached
TrustIsStale               503    ``database_lookup``: a hub has been silent for too long, and WHEN_STALE is ``refuse``
========================== ====== =============================================================================================
"""

from .signed import DeviceHttpRequest, verified_device
from .types import VerifiedDevice
from .verifier import Verifier

__all__ = ["DeviceHttpRequest", "VerifiedDevice", "Verifier", "verified_device"]
