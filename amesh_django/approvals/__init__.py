"""Approvals: the devices that wait for a person."""
