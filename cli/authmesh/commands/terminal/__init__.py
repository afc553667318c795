"""The conversation of a command with a person at a terminal, or with a program that reads JSON.

A command hands lines (:mod:`.lines`) and questions to a :class:`.console.Console`. Each front end implements the drawing only:
:mod:`.rich_console` for ``amesh``, :mod:`amesh_django.management.console` for Django. Questions that are asked while an event
loop runs go through :mod:`.prompts`, which reads the keyboard without a thread (:mod:`.keyboard`). One-time codes are shown as large
digits (:mod:`.large`) and as a QR code (:mod:`.qr`).
"""
