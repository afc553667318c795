"""``python -m amesh_cli``."""

from .main import main

main()
