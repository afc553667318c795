"""The messages of pairing and of bootstrap tokens, as pure functions.

:mod:`.codes` is what both versions of pairing share, :mod:`.v1` and :mod:`.v2` are the versions, :mod:`.token` is bootstrap tokens,
:mod:`.errors` and :mod:`.token_errors` are the errors.
"""
