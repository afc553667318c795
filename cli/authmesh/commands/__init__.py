"""The commands that ``amesh`` and the management commands of a Django server share.

``amesh`` begins in :mod:`.main`, which loads :mod:`.app`; a management command begins in :mod:`amesh_django.management.base`. Both take a
:class:`.spec.Command` from :mod:`.registry`, let it add its arguments to their parser, and run it with :func:`.spec.attempt`, which turns
errors into exit codes. What the two front ends do differently, a command receives in its :class:`.context.Context`:

- the console (``terminal/``) draws lines, asks questions, and spells the commands that a text names;
- the home (:mod:`.home`) opens the identity and the allow list, in files or in a database.

The larger commands have folders: ``doctor/``, ``pairing/`` (listen, invite) and ``tokens/`` (provision, bootstrap).
"""
