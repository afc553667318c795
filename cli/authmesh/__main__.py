"""``python -m authmesh``."""

from .commands.main import main

main()
