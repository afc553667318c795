"""A fleet: a hub carries what people decide to the servers that follow it (docs/fleet.md §5).

Theory of operation, at a server

1.  A hub is a controller in the sealed list with the permission ``revoke`` or ``enroll``. Its message is an ordinary signed request that
    names the server, so that no other server can be made to take it.
2.  The server keeps the last word of each hub about each key: epoch, serial, and event (:mod:`amesh_django.trust.hubs`). An event whose
    serial is not higher is acknowledged, and changes nothing. That one rule makes messages idempotent, keeps their order, and prevents an
    old message from reviving or revoking a device that a person has trusted since.
3.  A message, the words in it, and the number up to which all is applied are one transaction with one sealed change. If it is rolled back,
    none of them happened, and the hub sends it again.
4.  What a hub did has the author ``hub am_…`` under the seal. It may undo that and nothing else, and never raises what a device may do.
5.  Serials of two epochs cannot be compared. With a new epoch, or if the server lacks more than 1,000 serials, the hub adds the signed
    list of all its revocations, which only ever adds.
"""
