"""doctor: examines everything that must be in order for this device to sign and to be known.

:mod:`.command` runs the checks one after the other. :mod:`.device` examines this machine, :mod:`.relay` a relay, and :mod:`.server` a
server, whose answer :mod:`.answers` explains. Each check yields findings (:mod:`.findings`): a status, a message, and a hint that says
what to do. A front end adds checks of its own.
"""
