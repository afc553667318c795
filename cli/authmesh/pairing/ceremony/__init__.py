"""The ceremony of a pairing, without I/O.

:mod:`.target` and :mod:`.controller` are the two roles, each a generator that yields one action after the other; :mod:`.machine`
defines the actions and takes the answers.
"""
