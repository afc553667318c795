"""`python -m tests.bench`: run the sections, print the tables and whether the targets are reached, write the JSON."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.backends.openssl import backend

from tests.bench import fleet, keys, listing, pages, pairing, relay, sending, serving, verifying
from tests.bench.figures import Section, write_json
from tests.bench.world import SCALES, World, running_world
from tests.support.services import ROOT

SECTIONS: dict[str, Callable[[World, Callable[[str], None]], Section]] = {
    "verifier": verifying.measure,
    "requests": serving.measure,
    "list": listing.measure,
    "client": sending.measure,
    "pairing": pairing.measure,
    "relay": relay.measure,
    "keys": keys.measure,
    "fleet": fleet.measure,
    "pages": pages.measure,
}
PACKAGES = (
    "celery",
    "cryptography",
    "django",
    "django-redis",
    "djangorestframework",
    "djangorestframework-api-key",
    "djangorestframework-simplejwt",
    "gunicorn",
    "httpx",
    "psycopg",
    "redis",
)

#: Load average above which something else is running.
QUIET = 0.5


def _machine() -> dict[str, Any]:
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "openssl": backend.openssl_version_text(),
        "load before": os.getloadavg()[0],
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="full", help="how much is measured (default: full)")
    parser.add_argument("--quick", dest="scale", action="store_const", const="quick", help="the same as --scale quick")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="this section; may be given more than once")
    parser.add_argument("--json", type=Path, default=ROOT / ".bench" / "bench.json", help="where the JSON is written")
    return parser.parse_args(words)


def run(words: Sequence[str] | None = None) -> list[Section]:
    """Run what was asked for, print the tables, write the JSON."""
    arguments = _arguments(words)
    machine, start = _machine(), time.monotonic()
    sections = []
    _say("databases")
    with running_world(SCALES[arguments.scale]) as world:
        for name in arguments.only or SECTIONS:
            sections.append(SECTIONS[name](world, _say))
            _say("")
            print(sections[-1].text(), flush=True)
    machine |= {"scale": arguments.scale, "seconds": round(time.monotonic() - start), "load after": os.getloadavg()[0]}
    write_json(arguments.json, machine, sections)
    targets = [target for section in sections for target in section.targets]
    missed = [target for target in targets if not target.reached]
    print(f"{len(targets) - len(missed)} of {len(targets)} targets reached.", *missed, sep="\n")
    print(f"{machine['seconds']} s, scale {arguments.scale}. All figures: {arguments.json}")
    if machine["load before"] > QUIET:
        print(f"The load was {machine['load before']:.1f} when this began: the figures are those of a busy machine.")
    return sections


def main() -> int:
    """Missing a target is no failure: the table says so. Missing a program is one, and which it is gets said."""
    try:
        run()
    except pytest.skip.Exception as missing:  # what the tests do without, the bench cannot
        print(missing, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
