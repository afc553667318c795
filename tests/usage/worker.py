"""A process of its own that counts requests; the tests run several at once.

Usage: ``python -m tests.usage.worker SEED ROUNDS``
"""

from __future__ import annotations

import random
import sys

import django


def main(seed: int, rounds: int) -> None:
    from amesh_django.usage import counting

    chosen = random.Random(seed)
    for _ in range(rounds):
        names = [f"am_{number:016d}" for number in range(40)] * 3
        chosen.shuffle(names)
        for name in names:
            counting._counts.count(name, chosen.choice(["orders/", "stock/"]), "")
        counting._counts.count("", "", "unknown_device")
        counting._counts.flush()
    counting._written_to = counting._name_of("default")
    counting._counts.count("", "", "last")  # written at the end of the process


if __name__ == "__main__":
    django.setup()
    main(int(sys.argv[1]), int(sys.argv[2]))
