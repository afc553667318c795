"""The entry point of ``amesh``: names the extra to install if rich is missing, and otherwise runs the application."""

from __future__ import annotations

import os
import signal
import sys


def _open_closed_streams() -> None:
    """Open ``/dev/null`` for each standard stream that was closed (``>&-``).

    Otherwise Python has None for the stream, and the first file that is opened gets its number.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def main() -> None:
    """Run the command line, and exit."""
    _open_closed_streams()
    try:
        from .app import run  # optional: rich, of the extra [cli]; and Ctrl-C while this loads must not be a traceback
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "rich":
            raise
        sys.exit("The amesh command needs the package rich. Install it with pip install 'amesh-django[cli]'.")
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while Python shuts down must not be a traceback
    sys.exit(code)


if __name__ == "__main__":
    main()
