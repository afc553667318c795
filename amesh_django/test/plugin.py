"""pytest fixtures of amesh."""
