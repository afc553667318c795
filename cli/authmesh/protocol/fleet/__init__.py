"""Fleet: how a hub tells its servers about devices (docs/fleet.md). Pure: no I/O, no clock.

- :mod:`.errors` has every refusal of a message of a hub, or to a hub.
- :mod:`.events` has what one event says.
- :mod:`.feed` has the messages that carry events, and what is signed for their answers.
- :mod:`.pull` has the question of a server to its hub, and the signature of the answer.
"""
