"""Tests of the room ``approvals``."""
