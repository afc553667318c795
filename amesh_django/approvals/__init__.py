"""Approvals: the devices that wait for a person, and the mail that tells those who may approve them.

:mod:`.notices` decides when a mail is due, and sends it in a thread; :mod:`.digest` writes it, :mod:`.mailer` knows how;
:mod:`.waiting` finds who waits.
"""
