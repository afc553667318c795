"""The entry point of ``amesh``: names the extra to install if rich is missing, and otherwise runs the application."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line, and exit."""
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
