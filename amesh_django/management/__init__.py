"""The management commands ``amesh_*``.

A command takes its description from :mod:`authmesh.commands` (:class:`.base.AmeshCommand`), and runs it with a console that writes to
Django's streams (:mod:`.console`), with the allow list in the database (:mod:`.home`), and with Django's errors explained
(:mod:`.errors`).
"""
