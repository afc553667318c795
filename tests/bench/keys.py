"""Keys: signatures per second of each key store, beside the bare signature below it."""

from __future__ import annotations

import functools
import hashlib
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from authmesh.keystore import EncryptedFileKeyStore, KeyStore
from authmesh.keystore.tpm.blob import key_template
from authmesh.keystore.tpm.link import link_to
from authmesh.keystore.tpm.objects import parent_key
from authmesh.keystore.tpm.store import TpmKeyStore
from authmesh.protocol import load_private_key
from tests.bench.figures import Row, Section, Target, interleave, ratio
from tests.bench.world import World
from tests.keystore.tpms import Swtpm, forget, running_swtpm

LIMIT = 1.3
ROUNDS = 30
MESSAGE = b"AMv1\nPOST\n/amesh/?page=2&sort=name\n1774692300\nAAAAAAAAAAAAAAAAAAAAAA\n" + b"0" * 64

Sign = Callable[[], Any]


def _each(sign: Sign, count: int) -> float:
    """The median of *count* signatures, microseconds."""
    times = []
    for _ in range(count):
        start = time.perf_counter_ns()
        sign()
        times.append((time.perf_counter_ns() - start) / 1000)
    return statistics.median(times)


def _store(store: KeyStore) -> Sign:
    alias = store.create().alias
    sign = functools.partial(store.sign, alias, MESSAGE)
    sign()
    return sign


def _raw() -> Sign:
    """What OpenSSL takes for a signature in DER."""
    key = load_private_key(random.randbytes(32))
    return functools.partial(key.sign, MESSAGE, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def _bare(swtpm: Swtpm) -> Sign:
    """TPM2_Sign through the ESAPI and nothing else, with a key that stays loaded, over a connection of its own."""
    made: list[Any] = []

    def make(tpm: Any) -> None:
        library, context = tpm.library, tpm.context
        with parent_key(tpm) as parent:
            private, public, *_ = context.create(parent, library.TPM2B_SENSITIVE_CREATE(), key_template(library))
            made.append(context.load(parent, private, public))
        made.append(context)
        made.append(library)

    link_to(swtpm.tcti).run(make)
    key, context, library = made
    digest = library.TPM2B_DIGEST(hashlib.sha256(MESSAGE).digest())
    scheme = library.TPMT_SIG_SCHEME(scheme=library.TPM2_ALG.NULL)
    ticket = library.TPMT_TK_HASHCHECK(tag=library.TPM2_ST.HASHCHECK, hierarchy=library.TPM2_RH.NULL)
    return functools.partial(context.sign, key, digest, scheme, ticket)


def measure(world: World, say: Callable[[str], None]) -> Section:
    """Run the rounds and make the figures."""
    say("keys")
    rounds, batch = min(ROUNDS, world.scale.rounds), world.scale.batch
    section = Section(
        "keys",
        "Keys",
        "A signature over a request's canonical string; each key is unlocked or loaded once, before. The TPM is swtpm.",
        "÷ bare",
    )
    folder: Path = world.folder / "bench keys"
    with running_swtpm() as swtpm:
        pairs: list[tuple[str, str, Sign, Sign]] = [
            (
                "encrypted file",
                "P-256 of OpenSSL, deterministic",
                _store(EncryptedFileKeyStore(folder, lambda: "bench")),
                _raw(),
            ),
            ("TPM", "TPM2_Sign through the ESAPI", _store(TpmKeyStore(folder, swtpm.tcti, str)), _bare(swtpm)),
        ]
        for name, below, store, bare in pairs:
            measures = {below: functools.partial(_each, bare, batch), name: functools.partial(_each, store, batch)}
            samples = interleave(rounds, measures)
            for title, found in samples.items():
                rate = f"{1e6 / statistics.median(found):,.0f} a second"
                section.rows.append(Row(title, "µs", found, ratio(found, samples[below]), rate))
            section.targets.append(
                Target(f"a signature, {name}", ratio(samples[name], samples[below]), LIMIT, "× the bare one")
            )
        forget(swtpm.tcti)
    return section
