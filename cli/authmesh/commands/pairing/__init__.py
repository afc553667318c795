"""Pairing at a terminal: :mod:`.listen` is the target, :mod:`.invite` is the controller, and :mod:`.meeting` is what both share.

The two commands implement the operators of :mod:`authmesh.pairing`: the ceremony tells them each step, and asks them for codes and
decisions. They show the steps and ask the person; with ``--json`` they print one line for each step, and a program answers on stdin.
"""
