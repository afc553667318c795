"""Commands of the shipped project."""
