"""Keys in a TPM 2.0: created there, used there, and never outside.

How a signature is made, from the outside in:

- ``store`` is the key store. It reads the key file (``blob`` has its format) and passes a function to the link.
- ``link`` has one :class:`.link.TpmLink` for each TPM in the process. It lets one thread at a time use the connection, and repeats the
  function if a failure is temporary (``codes`` has the response codes).
- ``turn`` is in between if the TPM has no resource manager: the processes of a user take turns.
- ``connection`` is the open connection. It knows which objects are loaded.
- ``objects`` has the commands: derive the parent, load the key, sign, unseal.
- ``place`` names the TPM and loads the library; ``pin`` finds the PIN of a key. ``counter`` is separate from keys: a number that only
  increases, which detects that a file was restored.

Theory of operation:

1. A TPM stores no key of this program. ``TPM2_Create`` returns a key that is encrypted for the TPM itself ("wrapped"), under a parent
   that the TPM derives from its own seed. The key file holds the wrapped key. To sign, the parent is derived, the key is loaded into a
   slot, and ``TPM2_Sign`` uses it. Deriving and loading are slow, so the key stays loaded, and its saved context is kept in memory.
2. A TPM has few slots: often three for objects and three for sessions. A *resource manager* gives every connection its own slots and
   swaps them in and out. The kernel has one (``/dev/tpmrm0``), and tpm2-abrmd is another.
3. **With a resource manager, no turns are taken.** Loaded objects belong to the connection, processes do not disturb each other, and
   the objects of a killed process disappear with its connection. ``/dev/tpmrm0`` is the default.
4. **Without one, all programs share the same slots**, and turns are needed. That is the case for ``/dev/tpm0`` (a container that is
   passed only this device, a kernel before 4.12), which also accepts only one open connection, and for a TPM in software behind a
   socket (swtpm, mssim). Without turns, the workers of a server would fill each other's slots and fail with ``TPM_RC_OBJECT_MEMORY``,
   or sign with a handle that another process has reused. With turns, a process finds its key still loaded if no other process had a
   turn in between, and unloads the objects of the previous process if one had, even if that process was killed. If the TPM accepts
   only one connection, a process unloads its objects and disconnects at the end of each turn, and loads the saved contexts in the next.
5. Turns are cooperation, not protection. A program that takes no turns may unload the key or load its own key into the slot. Each key
   without a PIN therefore has a random password (the *mark*), and the name of the loaded object is compared after a failure; the key is
   then loaded again.
6. A connection does not survive a fork. Commands are paused during a fork (``os.register_at_fork``), the child opens its own
   connection, and never closes the one of its parent. The locks are ForkSafeLocks, because a thread that holds one does not exist in
   the child.
"""
