"""How this app writes a command of amesh: ``manage.py amesh_NAME``."""

from __future__ import annotations

from authmesh.protocol.errors import Run


def manage_py(command: Run) -> str:
    """Return a command line, such as ``manage.py amesh_sign_test URL``. Pass this function to ``AmeshError.text``."""
    return f"manage.py amesh_{command.name.replace('-', '_')} {command.arguments}".rstrip()
