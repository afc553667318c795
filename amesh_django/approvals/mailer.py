"""The way in which the project sends mail: ``MAILERS`` of Django 6.1, or the older settings."""

from __future__ import annotations

from typing import Any

from django.conf import settings as django_settings
from django.core import mail

#: The settings of the project, whose types do not know MAILERS.
settings: Any = django_settings

SMTP = "django.core.mail.backends.smtp.EmailBackend"
#: Seconds that a mail server has for each step, if the settings say nothing else.
TIMEOUT_SECONDS = 30
# Backends whose mails reach nobody.
_NOWHERE = ("django.core.mail.backends.locmem.EmailBackend", "django.core.mail.backends.dummy.EmailBackend")


def is_configured() -> bool:
    """Return True if the settings of the project say how a mail is sent, and it reaches somebody."""
    return backend() not in ("", *_NOWHERE)


def backend() -> str:
    """Return the dotted path of the backend; an empty text if the settings of the project name none."""
    if settings.is_overridden("MAILERS"):
        default = settings.MAILERS.get("default")
        return str(default.get("BACKEND", SMTP)) if default is not None else ""
    if settings.is_overridden("EMAIL_BACKEND"):
        return str(settings.EMAIL_BACKEND)
    return SMTP if settings.is_overridden("EMAIL_HOST") else ""


def connection() -> Any:
    """Return a connection of the backend, not opened yet. It does not wait forever.

    Raises:
        Exception: any, if the settings are wrong.
    """
    found: Any = getattr(mail, "mailers", None)
    made: Any = found.default if found is not None else mail.get_connection()
    if getattr(made, "timeout", 0) is None:
        made.timeout = TIMEOUT_SECONDS
    return made
