"""The table of pairings that people began in the admin: what their pages show, and what people have answered."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from authmesh.protocol.display import clean_line


class PairingSession(models.Model):
    """A pairing that a person began in the admin.

    The process that runs the ceremony writes what the pages show; the pages write what people have answered. Nothing that a key could
    be derived from is stored: the ephemeral private key stays in the memory of that one process. The MAC covers what that process
    writes and what the person has chosen, and an answer has a MAC of its own (:mod:`amesh_django.pairing.genuine`).
    """

    class Step(models.TextChoices):
        """How far a pairing is."""

        STARTING = "starting", _("connecting to the relay")
        WAITING = "waiting", _("waiting for the device")
        CODE = "code", _("waiting for the verification code")
        CONFIRM = "confirm", _("waiting for the confirmation")
        DONE = "done", _("paired")
        FAILED = "failed", _("failed")
        CANCELED = "canceled", _("canceled")

    #: A random name, which the address of the page has.
    token = models.CharField(max_length=43, unique=True)
    #: Primary key of the person whose pairing it is, as text, and their name.
    owner = models.CharField(max_length=150)
    by = models.CharField(_("by"), max_length=150)
    begun_at = models.DateTimeField(_("begun"))
    ends_at = models.DateTimeField(_("ends"), null=True, blank=True)
    #: What the device gets: a JSON object, see :mod:`amesh_django.pairing.chosen`.
    chosen_json = models.TextField(default="{}")
    relay = models.CharField(_("relay"), max_length=500, blank=True)
    step = models.CharField(_("step"), max_length=16, choices=Step.choices, default=Step.STARTING)
    code = models.CharField(_("code"), max_length=32, blank=True)
    device_id = models.CharField(_("device ID"), max_length=32, blank=True)
    public_key = models.CharField(_("public key"), max_length=64, blank=True)
    name = models.TextField(_("name"), blank=True)
    #: What a person has entered and the ceremony has not read yet, with its MAC, and the number of wrong codes.
    answer = models.CharField(max_length=128, blank=True)
    wrong = models.PositiveSmallIntegerField(default=0)
    is_canceled = models.BooleanField(default=False)
    #: Why it failed: the code of the error, and its message and hint as a JSON list.
    error_code = models.CharField(max_length=64, blank=True)
    error_json = models.TextField(blank=True)
    #: When the process that runs the ceremony wrote last, and which that is.
    alive_at = models.DateTimeField(null=True, blank=True)
    host = models.CharField(max_length=100, blank=True)
    #: When the person looked at the page last.
    seen_at = models.DateTimeField()
    mac = models.CharField(max_length=64)

    class Meta:
        verbose_name = _("pairing")
        verbose_name_plural = _("pairings")
        ordering: ClassVar[list[str]] = ["-id"]
        default_permissions = ()

    def __str__(self) -> str:
        return f"{clean_line(self.by)}, {self.begun_at}"
