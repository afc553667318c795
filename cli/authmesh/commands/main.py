"""Entry point of ``amesh``: says what to install where click or rich is missing, else hands over to the application."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line."""
    try:
        from .app import run
    except KeyboardInterrupt:  # Ctrl-C before anything has begun
        sys.exit(130)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("click", "rich"):
            raise
        sys.exit(f"The amesh command needs {missing}. Install it: pip install 'amesh-django[cli]'")
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # all is done: Ctrl-C while Python tidies up is no traceback
    sys.exit(code)


if __name__ == "__main__":
    main()
