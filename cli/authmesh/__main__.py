"""``python -m amesh_cli``."""

from .commands.main import main

main()
