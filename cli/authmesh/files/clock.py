"""The clock of this machine. Code that needs the time takes a function of this form, so that tests can hand in their own."""

from __future__ import annotations

import datetime as dt


def utc_now() -> dt.datetime:
    """Return the current time in UTC, with a time zone."""
    return dt.datetime.now(dt.UTC)
