"""The sealed allow list in a database, as one object (design.md, decision 3).

:func:`current_list` returns the sealed list of this process. A request looks its device up in ``current_list().snapshot()``;
:class:`~amesh_django.allow_list.DatabaseAllowList` calls ``change``, ``report`` and ``reseal``. The object holds the database alias and
the keys. Each file adds one layer to it, and imports only from files below:

    current     current_list()      the list of this process, one for each database alias
    integrity   SealedList          report(), reseal()
    rekeying    RekeyableList       rekey(): another secret of the seal
    revoking    RevocableList       revoke_anyway(), sealed_device(): revoking in a list that is rejected (6)
    change      ChangeableList      change(): each change is sealed
    replaced    keys_before()       the keys that a device had before, in the events about it (15)
    hubs        HubRows             what hubs have said about keys, each row under a MAC (14)
    hub_macs    hub_mac(), entry_mac()  their MACs, and the hash over the words of a hub
    locking     LockableList        while_locked(), replace_seal(): the lock of the seal row
    snapshot    VerifiedList        snapshot(): the states of a process (3, 4); verified(): rows that are shown (5)
    verified    Snapshot            the verified rows in memory: build(), catch_up(), matches()
    rollback    GuardedRows         check_age(), remember(), memory(): the high-water mark of one database
    places      Place               places in the audit log beside its end, in rows of their own
    chain       ChainedRows         append(), events(), lock_end(): the audit log and its end (13)
    groups      Groups              the groups, their digest, and the scopes of a device
    sealing     SealedRows          read_seal(), rows(), under(), hash_row(), make_seal()
    keys        seal_keys()         the keys of seal, rows, audit log and marks
    owner       open_device()       the device whose secret they are derived from
    high_water  HighWater       the marks of this host: a file and, with a TPM, a counter
    revocations  Revocations    the newest revocations of this host, in a file, for the day when a backup was restored
    marks       Mark                a high-water mark, and the errors for older and other lists
    database, triggers              which database, and its transactions; what counts changes from outside Django
    damage                          rows that cannot be read, and how those beside them are read

Theory of operation

1.  What is stored. The database holds the device rows, the groups, one seal row (revision, epoch, digest of all rows, counts, digest of
    all groups, end of the audit log, HMAC), and the audit log, each event with its own MAC and a link. The device directory holds the
    high-water mark of each database: the newest list that this host has
    seen. The process holds a snapshot in memory: rows that matched their seal.

    The epoch is the random name of a list. It is made with the first seal and kept by every change, so a list that the same key sealed
    in another database has another one. Resealing makes a new epoch, and stores with it which epochs the list continues: that of the
    mark, and that of the list that a person accepted. A list is another one, and is rejected, if it neither has the epoch of the
    snapshot or mark nor continues it. So it is enough to reseal on one host.

2.  A request reads the seal row. If it equals the seal of the snapshot, the snapshot is the list: no other query, no lock, no hash.
    Every ten seconds, one such call also checks whether another process of this host has stored a mark, and compares the list with
    the mark if so: the list may have been restored to the very revision that this process knows. If the server has closed the
    connection while it was idle, the connection is closed and the list is read once more, unless a transaction is open.

3.  The states of a process. They are kept in the object; the snapshot is replaced only by one that matched its seal.

    a.  Empty: there is no snapshot. This is so at the start, after ``reset()``, and after the check of marks in (2) failed. The next
        call compares the seal with the mark, reads and hashes all rows, stores the mark, and keeps the snapshot.
    b.  Verified: there is a snapshot. A newer seal is compared with the mark; then the rows of later revisions, and all groups if
        their digest is another one, are read and applied, if the triggers have counted no change from outside Django and the result matches the new seal. Otherwise all rows are
        verified again.
    c.  Broken: the list was rejected. The same seal row is not examined again for at least a second, and for ten times as long as the
        check took; the error is raised at once. Any other seal row is examined, so a change that is undone by hand is accepted
        again. What is rejected at little cost (no seal, a wrong HMAC, a revision older than the snapshot) is examined every time.
    d.  No list: there is neither a seal row nor a device. The result is an empty snapshot, which is not kept. The mark is compared
        at most once a second.

4.  What an open transaction sees.

    a.  A transaction that has locked the seal row (with ``change``, ``report`` or ``reseal``), and everything inside a Django test
        case, reads for itself: it verifies all rows at its first read and after each of its changes, and keeps the result with
        the connection. Nothing of it enters the state of the process or the mark, because it may be rolled back.
    b.  Any other transaction shares the state of the process. If it still sees an older seal than that of the snapshot (REPEATABLE
        READ), it gets the snapshot, so that a revocation counts there too, if the list that is committed now is not older, which
        another connection reads. If there is no newer snapshot but a newer mark, and the
        list that is committed now agrees with the mark, the list that the transaction sees is verified and returned, but not kept.
    c.  Outside a transaction, a seal that is older than one read before, or of another list, is rejected.

5.  The triggers are a hint, and anyone who can write both tables can undo what they count. So a row that is handed out, shown or
    changed is compared with the snapshot: one hash for each row. A row that the snapshot has and the database has not counts as
    changed. If a row differs although the seal row is that of the snapshot, the snapshot is forgotten, the call is refused, and
    ``touched`` is incremented (unless a transaction is open), so that every other process verifies all rows as well.

6.  A change unlocks the keys, and brings the snapshot up to date, unless a transaction is open or another thread does so: a change does
    not wait for (7b). It opens a transaction, locks the seal row and reads it. It verifies all rows if there is no seal or if the
    triggers have counted a change, and rejects a seal that is forged or older than the mark. It compares each row that it reads with
    the snapshot and the rows that are newer, or verifies all rows if they do not lead to the seal (5). It changes rows, appends to
    the audit log (13), and replaces the seal only if revision and HMAC are those that it read. The mark is stored on commit. If another change was
    committed meanwhile, all of it is tried again; inside an outer transaction that is possible only as long as the database reports no
    conflict.

    Revoking works in a list that is rejected, too. The row is written as the audit log says it was sealed, and revoked. The new seal is
    the one before with this row replaced, so every other row that does not match is still detected, and ``touched`` makes all processes
    verify all rows. The revision of an old list is not incremented, and no seal is written over one that is missing or forged: both
    stay rejected.

7.  Locks, in the order in which they are taken. No thread waits for an earlier one while it holds a later one.

    a.  ``keys._keys_lock``, ``owner._device_lock``, the lock of the device: filled once per process. They are released before (b) is
        taken, because unlocking a key may take a second.
    b.  ``VerifiedList._lock``, between threads: guards the snapshot and the other states of (3). A request that finds an unchanged
        list does not take it. Forgetting the snapshot (5) does not need it.
    c.  The lock of the seal row (on SQLite, the write lock of the database), between hosts: held by a change until its transaction
        ends. A reader takes it only if the list was changed five times while it was being read, and again if the database reports a
        conflict (REPEATABLE READ). A thread that holds it does not wait for (b), because it reads for itself (4a). One exception: MySQL
        keeps the lock when a savepoint is rolled back.
    d.  The lock of the device directory, between processes of this host: guards the file of the marks and the counter in the TPM. A
        process that has committed a change or reseals waits for it, five seconds at most. A request never does: it reads without
        the lock, and the mark is written a second later.
    e.  The TPM's own lock.

8.  Threads share the object. While one applies a change to the snapshot, another that reads it sees each device as before or as after
    the change; both are lists that were committed.

9.  A forked child keeps device, keys and snapshot, and finds every lock open. If (7b) was held in the parent, the snapshot may be half
    changed, and the child begins empty.

10. Other processes and hosts share nothing but the database, and see a change with their next read of the seal row. It is read from
    the database that is written to, never from a replica. The processes of one host share its marks. A host that has seen a newer
    list rejects an older one; a host that has not cannot know.

11. A device that is not in place yet, during enrolment, is handed to ``SealedList(using, device=device)``. That object has its own keys
    and its own state, and has no high-water mark.

12. While the secret of the seal is being replaced, there are several keys. Each seal row, each event, and the file of the
    marks fits one of them, and ``under(row)`` returns the rows with the keys of a seal: a hash is compared only with hashes under the
    same keys. A change keeps the keys of the seal before. Rekeying verifies the list with the old keys and seals rows and audit log with
    the first; a snapshot under the old keys does not lead to that seal, so each process verifies all rows once. The file of the marks
    follows when a process of its host stores the mark of a list under the first keys.

13. The audit log is a chain: event i has the number i and the link HMAC(link of i-1, i, MAC of i). A row says where it ends, under a MAC.
    A change locks that row after the seal row (7c), appends its events, and binds the new end in the seal. Any other event is inserted
    without a place, and gets one later under the lock of that row alone, so such events never wait for a change of the list, nor does
    it for them. The end that the seal binds is therefore the end, or an event before it. If the row with the end was damaged outside
    Django, a change goes on after a gap in the numbers: a damaged log stops no change, and the gap is found by each verification.

14. What a hub said about a key is a row beside the list, not in it: such rows may be many more than the devices, and most change no row of
    the list. They are written in the transaction of the change, so either both happen or neither. Each row has a MAC, and the row of the
    hub has a masked multiset hash over all of them, as the seal has over the devices. The row of a hub is locked after the seal (7c); a
    message that changes no device locks that row alone. No request reads these rows.

15. The event of a revocation or a suspension, and that which undoes it, names the keys that the device had before and that are not accepted any more.
    They are read with the change, because the row of such a key is not changed by it, and may be purged later: a server of a hub that
    was never told of the new key must refuse the old one.
"""

from __future__ import annotations

from . import current, keys, owner
from .current import current_list
from .integrity import SealedList

__all__ = ["SealedList", "current_list", "reset"]


def reset() -> None:
    """Forget the device, the keys, and everything that was verified with them."""
    owner.reset()
    keys.reset()
    current.reset()
