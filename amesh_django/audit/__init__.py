"""The audit log: what is in it, who else writes to it, how its events get their places, and how it is verified (design.md, decision 13).

Changes of the allow list are written by :mod:`amesh_django.trust` itself, in the transaction of the change and at once with their place.
This folder has the rest:

- :mod:`.recording` writes any other event, without a place. An event that cannot be written is logged, and stops nothing.
- :mod:`.placing` gives such events their places, in batches, :mod:`.checkpoints` signs where the log ends, and :mod:`.sweeping` does both.
- :mod:`.archiving` moves the oldest events to a file.
- :mod:`.verifying` finds the first fault of the log, and names it.
- :mod:`.verifications` writes an event about each verification, and reads the newest; :mod:`.background` does one in a thread.
- :mod:`.refusals` counts refused requests, and writes few events about many.
- :mod:`.settings` notes changes of ``AMESH``.
- :mod:`.reading` returns events for people and programs, and :mod:`.ocsf` in a form that programs for security events read;
  :mod:`.exporting` makes lines of them.
"""
