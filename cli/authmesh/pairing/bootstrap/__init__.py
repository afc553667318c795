"""Pairing without a person at the target: the controller makes a bootstrap token, the target uses it (protocol.md §7).

On the controller, :mod:`.controller` waits at a relay for the targets. On the target, :mod:`.background` tries in a thread, started by
the first request; :mod:`.enrolment` makes the attempts; :mod:`.staging` prepares the identity in a folder of its own; :mod:`.target`
talks to the relay.
"""
