"""The two key stores of macOS: the Secure Enclave, and the key chain of the user.

**This code has not run on a Mac yet.** It was written from Apple's documentation and is tested with a replacement of Apple's functions.

``store`` has the two key stores; ``chain`` calls Apple's Security framework for them; ``codes`` turns result codes into messages.

Aliases. The reference gives its key one fixed name for each user. In this program, each key gets a random alias, which is stored in
``identity.json`` and never changes. So two device directories of one user, or an old and a restored one, cannot delete each other's key.
Items that already have the alias of a new key are still removed first.

Forks. Apple's frameworks do not survive a fork without exec: macOS may end a child process that uses objects of its parent. A server
that loads the application before it forks must not use the key before the fork; each child then looks the key up again.
"""
