"""Counted requests: how often each device was accepted or refused, for people who look after a fleet.

A request runs through this folder so:

1. :mod:`.counting` has the receivers of ``request_routed`` and ``request_refused``. They count in the memory of the process, in groups of one
   hour, device, route, and reason. The number of groups is bounded; what is beyond is counted for all devices together. A device that is
   not in the list has no group: anyone can make keys.
2. At the end of a request, every ten seconds at most, and when the process ends, :mod:`.writing` adds the counts to the table. Each
   group is added to at most four rows: the hour and the day of its device, and the hour and the day of all devices. So a page about all devices reads
   some rows, however many devices there are. Several processes add to the same rows, and nothing is lost.
3. :mod:`.pruning` deletes hours after 3 days, and days after 400 days.

:mod:`.reading` returns the counts for pages and programs.

Nothing here fails a request: what cannot be written is logged. Nothing here is sealed, and it decides about no request.
"""
