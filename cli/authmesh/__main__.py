"""``python -m authmesh`` runs the ``amesh`` command."""

from .commands.main import main

main()
