"""Helpers for the tests of projects that use amesh."""
