"""Enrollment: machines become controllers of this server by a token, without a person at either (docs/fleet.md §1).

A request runs through this folder from the outside in:

1. :mod:`.answering` checks the proof and the signature of the new key, and signs the answer. A wrong proof never reaches the database.
2. :mod:`.limits` counts wrong proofs by address, and requests by token.
3. :mod:`.admission` trusts the machine and counts the use of the token, in one sealed change. Whether a key that is
   known may come back is decided in one function there.
4. :mod:`.tokens` makes, finds, and withdraws tokens. A row that was changed outside Django has a wrong MAC and is refused.

Beside this path, :mod:`.rotating` replaces the key of a controller that asks for it.
"""
