"""How many attempts to enroll are answered: wrong proofs by address, and all requests by token, in each minute.

The counters are in the cache of the nonces. If it cannot be reached, nothing is limited: a proof cannot be guessed anyway, and a
wrong one costs neither a query nor a signature.
"""

from __future__ import annotations

import logging

from django.core.cache import caches

from amesh_django.conf import nonce_cache
from amesh_django.relay.addresses import LOCAL, network
from authmesh.protocol.enrollment_errors import EnrollmentRateLimited

logger = logging.getLogger("amesh_django.enrollment")

#: Wrong proofs of one address in a minute that are told to be wrong.
WRONG_PER_MINUTE = 30
#: Requests with one token in a minute: each of 10,000 machines twice.
USES_PER_MINUTE = 20_000


def count_wrong(address: str, *, now: float) -> None:
    """Count a wrong proof.

    Args:
        address: address of the client. IPv6 addresses count by /64.
        now: Unix seconds.

    Raises:
        EnrollmentRateLimited: there were too many in this minute.
    """
    _count(f"wrong:{network(address) or LOCAL}", WRONG_PER_MINUTE, now)


def count_use(jti: str, *, now: float) -> None:
    """Count a request with a right proof.

    Args:
        jti: number of the token.
        now: Unix seconds.

    Raises:
        EnrollmentRateLimited: there were too many in this minute.
    """
    _count(f"use:{jti}", USES_PER_MINUTE, now)


def _count(what: str, limit: int, now: float) -> None:
    key = f"amesh:enroll:{int(now) // 60}:{what}"
    try:
        cache = caches[nonce_cache()]
        cache.add(key, 0, timeout=120)
        count = cache.incr(key)
    except Exception as error:  # each cache backend raises errors of its own
        logger.warning("Attempts to enroll are not limited: the cache cannot count (%s).", type(error).__name__)
        return
    if count is not None and count > limit:
        raise EnrollmentRateLimited(detail=what)
