"""Bootstrap tokens at the command line.

:mod:`.provision` makes a token on the controller and waits for the device that uses it (:mod:`.awaiting`); :mod:`.bootstrap` enrolls
the device that has the token. :mod:`.enroll` is for the tokens of a server, with which devices become its controllers. :mod:`.words` shows the tokens of a controller, never a token itself.
"""
