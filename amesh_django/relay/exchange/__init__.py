"""What the processes of a relay must agree on, and the way of events between them.

:mod:`.base` is the interface that the hub uses. :mod:`.memory` implements it for a relay of one process, :mod:`.redis` for a relay of
several: :mod:`.redis_scripts` decides inside Redis, :mod:`.redis_link` holds the two connections to Redis, and :mod:`.parcels` packs
events for another process.
"""
