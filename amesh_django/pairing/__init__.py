"""Pairing from a web page: a person shows the one-time code of this server in the admin, and types the verification code there.

Two processes take part: the one that runs the ceremony, and the one that serves the page. They may be the same one. They talk through
the row of a :class:`~amesh_django.models.PairingSession`:

1. The page calls :func:`.sessions.begin`, which stores what the person has chosen, and :func:`.hosting.start`.
2. :mod:`.hosting` claims the row and runs the ceremony, in a thread of that process or in a worker of Celery. The ephemeral key exists
   in its memory only. Every two seconds, it writes that it is alive; if it has ended, the pages say so.
3. :mod:`.operator` is the person at this server, as the ceremony sees them. It writes each step to the row, and reads answers from it.
4. :mod:`.entering` puts the device into the sealed list with everything that was chosen, in one change.

Someone who can write to the database must not get a device trusted with that. So :mod:`.genuine` puts a MAC over all that the pages
show and that the device gets, and another one over each answer, which names the device that the person saw. :mod:`.consumer` tells a page
over a WebSocket that something has changed; what that is, the page asks by HTTP.
"""
