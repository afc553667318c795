"""Signals of the app (``django.dispatch.Signal``). They are sent with ``send_robust``: a receiver that fails is logged by Django, no more.

``request_accepted`` and ``request_refused`` are sent in the thread of the request, before the view, so their receivers must be fast.
The sender is None.
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = ["request_accepted", "request_refused"]

#: A signed request was accepted. Arguments: ``request`` (HttpRequest), ``device`` (VerifiedDevice), and ``seconds`` (float), how
#: long the verification took.
request_accepted = Signal()

#: A request was rejected. Arguments: ``request`` (HttpRequest) and ``error`` (RequestError), whose ``reason`` is the stable word in
#: the log, such as ``replay_detected``, and whose ``device_id`` and ``device_name`` are None if the device is not known.
request_refused = Signal()
