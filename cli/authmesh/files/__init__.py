"""Files, locks and the clock: what the rooms above need from the machine.

``storage`` writes the files of a device directory atomically, holds the lock of the directory, and finds files that other users can
access. ``locks`` has a thread lock that survives a fork. ``clock`` returns the time.
"""
