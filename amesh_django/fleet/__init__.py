"""A fleet: a hub carries what people decide to the servers that follow it (docs/fleet.md §5).

Theory of operation, at the hub

1.  The feed is the audit log. A change of the allow list writes its events in its own transaction, and nothing else: no row per server, no
    message, no queue. The serial of an event is the revision of the list. Revisions are handed out while the seal is locked, so the order of
    the numbers is the order of the commits, and a reader who goes on after a number misses nothing.
2.  The row of a server is the queue. It says which epoch and serial the server has acknowledged. The server is dirty if that is not the
    head of the list. It stays dirty, and is tried again, for ever: there is no dead letter.
3.  A ring is a hint. After a commit, a thread asks Celery to deliver to each server (:mod:`.bell`). A ring may be lost, late, or doubled: the
    broker is down, the process is killed between commit and ring, two changes ring at once. Nothing depends on it but the time.
4.  The sweeper is the guarantee (:mod:`.sweeping`). Every second it rings each server that is dirty, due, and not being served, and each that
    has heard nothing for 30 seconds. Several sweepers do no harm.
5.  A delivery takes a lease by one UPDATE with a condition (:mod:`.delivery`). So two deliveries never serve the same server at once, and
    no lock is held while the network is used. If the process is killed, the lease ends by itself within six seconds, and the same events
    are sent again: a server knows them by their serials.
6.  The cursor moves only by an answer that the server has signed for this very request. It moves to where the server says it is, also
    backwards: after a restored backup, the server gets again what it has lost.
7.  An event counts only if its MAC is genuine. A revision without a genuine event is a gap: the log was changed outside Django, or
    archived. Then, and with a new epoch, the server gets the signed list of all revocations, and the rest from the verified rows.
8.  The columns of a server that decide anything have a MAC. A row that was changed or added outside Django gets nothing.

Theory of operation, at a server

1.  A hub is a controller in the sealed list with the permission ``revoke`` or ``enroll``. Its message is an ordinary signed request that
    names the server, so that no other server can be made to take it.
2.  The server keeps the last word of each hub about each key: epoch, serial, and event (:mod:`amesh_django.trust.hubs`). An event whose
    serial is not higher is acknowledged, and changes nothing. That one rule makes messages idempotent, keeps their order, and prevents an
    old message from reviving or revoking a device that a person has trusted since.
3.  A message, the words in it, and the number up to which all is applied are one transaction with one sealed change. If it is rolled back,
    none of them happened, and the hub sends it again. A signed list, and a revision with more than 1,000 events, are applied in parts: each part
    is such a transaction, and the number is that of the last one. By the words, a message that comes again goes on where it ended.
4.  What a hub did has the author ``hub am_…`` under the seal. It may undo that and nothing else, and never raises what a device may do.
5.  Serials of two epochs cannot be compared. With a new epoch, or if the server lacks more than 1,000 serials, the hub adds the signed
    list of all its revocations, which only ever adds.

Each module has one part:

- :mod:`.sweeping`: the sweeper.
- :mod:`.delivery`: one delivery: the message, the answer, the next attempt.
- :mod:`.leases`: who may send to a server now.
- :mod:`.posting`: one POST within three seconds, whatever the other end does.
- :mod:`.feed`: the message for a server.
- :mod:`.events`: which events a change of the list is for a server.
- :mod:`.sealed_rows`: devices and groups as they were sealed, also in a list that is rejected.
- :mod:`.servers`: the servers of this hub.
- :mod:`.overview`: what people and programs are shown about them.
- :mod:`.signed_list`: all keys that a hub has revoked, as one signed text.
- :mod:`.bell`: the ring after a commit.
- :mod:`.rarely`: what the log says once a minute.
- :mod:`.freshness`: when a server asks its hubs, and what it does if they are silent.
- :mod:`.silence`: when its hubs were heard last.
- :mod:`.pulling`: the question of a server, and the answer of the hub.
- :mod:`.following`: which devices are hubs, and by which key a hub is known.
- :mod:`.forgetting`: what a device has said that is no hub any more is removed.
- :mod:`.receiving`: a message of a hub, from the request to the answer.
- :mod:`.parts`: the parts in which a large message is applied.
- :mod:`.plans`, :mod:`.applying`, :mod:`.trusting`: what the events of a message change here; :mod:`.rights`: what a hub gives, and what people
  have decided about that.
"""
