"""The other end of `tests.bench.world.Worker`: a process with Django on one database, doing what it is asked, line by line."""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any, TextIO


def main(orders: TextIO, answers: TextIO) -> None:
    """Answer each order, `{"call": name, …arguments}`, by `{"result": …}` or `{"error": traceback}`."""
    import django

    django.setup()
    from tests.bench import measures

    for line in orders:
        order: dict[str, Any] = json.loads(line)
        try:
            answer = {"result": getattr(measures, order.pop("call"))(**order)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever prints must not get between the answers
    main(sys.stdin, answers)
