"""The common part of listen and invite: how the two devices are shown, the time that is left, and an end that says what was stored."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from authmesh.device import AllowList, LocalDevice
from authmesh.pairing import Met, Paired, Pairing, Step
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry, Role
from authmesh.protocol.errors import Hint, Run
from authmesh.protocol.keys import encode_public_key

from ..context import Context
from ..home import Listed
from ..terminal.console import Console
from ..terminal.errors import Interrupted
from ..terminal.large import large, spaced
from ..terminal.lines import Shown, Styled, facts
from ..terminal.prompts import Prompts
from ..words import MEANING, named, permissions, refreshed

V1_WARNING = (
    "Version 1 of pairing does not protect against a malicious relay: the relay can put a device of its own in the place of the other "
    "one, and no code shows it. Continue only if you trust the relay, and only if the other device supports nothing newer."
)
#: Steps that have lines of their own, with more in them.
_SHOWN_OTHERWISE: tuple[Step, ...] = ("introduced", "finished")


class Meeting:
    """One pairing, as the person at this device sees it.

    Args:
        context: the surroundings of the command.
        relay: address of the relay.
        version: version of pairing.
        role: the role that the other device will have on this one.
        granted: the permissions that the other device will have.
    """

    def __init__(self, context: Context, relay: str, version: int, role: Role, granted: dict[str, Any]) -> None:
        self.context = context
        self.console: Console = context.console
        self.prompts = Prompts(self.console)
        self.relay = relay
        self.version = version
        self.role: Role = role
        self.granted = granted
        self.device: LocalDevice = context.own_device()
        self.allow_list: AllowList = context.home.allow_list()
        self.met: Met | None = None
        self._hub_words: list[dict[str, Any]] = []
        self.reached: set[Step] = set()
        self._counting: asyncio.Task[None] | None = None
        if version == 1:
            self.console.warn(V1_WARNING)

    # --- running ------------------------------------------------------------------------------------------------------

    def hold(self, pair: Callable[[Pairing], Coroutine[Any, Any, Paired]]) -> Paired:
        """Pair, in an event loop of its own.

        Raises:
            Interrupted: Ctrl-C was pressed; the message says what was stored.
            AmeshError: as :class:`Pairing`.
        """
        try:
            return asyncio.run(self._hold(pair))
        except KeyboardInterrupt:
            # The event loop has ended, and so has every write; the allow list shows what was stored.
            raise Interrupted(self._state()) from None

    async def _hold(self, pair: Callable[[Pairing], Coroutine[Any, Any, Paired]]) -> Paired:
        context = self.context
        pairing = Pairing(
            relay=self.relay,
            device=self.device,
            allow_list=self.allow_list,
            version=1 if self.version == 1 else 2,
            timeouts=context.timeouts,
            now=context.now,
            blocking=context.blocking,
        )
        try:
            return await pair(pairing)
        finally:
            self.stop_counting()

    def _state(self) -> Hint:
        """Return what is stored after Ctrl-C."""
        if self.met is None:
            return "Interrupted. Nothing was stored."
        public_key = self.met.peer.public_key

        async def find() -> DeviceEntry | None:  # in the same thread, after what a second Ctrl-C may have left running
            return await self.context.blocking(self.allow_list.find, public_key)

        try:
            stored = asyncio.run(find())
        except Exception:  # the command that is named here reports the reason
            return (
                "Interrupted. The allow list cannot be read, so the other device may be stored. To see the list, run ",
                Run("list"),
                ".",
            )
        if stored is None or stored == self.met.known:
            return f"Interrupted. Nothing was stored here. {self.stored_by_other()}".rstrip()
        return (
            f"Interrupted, but {named(stored)} is already stored as {stored.role}: {MEANING[stored.role]}. To undo this, run ",
            Run("revoke", stored.device_id),
            ".",
        )

    def stored_by_other(self) -> str:
        """Return what the other device may have stored when this one stops: a sentence, or an empty text."""
        raise NotImplementedError

    # --- steps --------------------------------------------------------------------------------------------------------

    def progress(self, step: Step) -> None:
        self.reached.add(step)
        self.stop_counting()
        if step == "connecting":
            self.console.step({"step": step, "relay": self.relay, "version": self.version})
            self.console.status(" connecting to the relay")
        elif step not in _SHOWN_OTHERWISE:
            self.console.step({"step": step})
        self.console.say(*self.lines_for(step))

    def lines_for(self, step: Step) -> list[Shown]:
        """Return the lines that announce a step to a person."""
        raise NotImplementedError

    def ask_json(self, question: str, **more: Any) -> None:
        """Tell a program that a line on stdin is expected."""
        self.console.step({"step": "question", "question": question, "seconds": self.context.timeouts.person, **more})

    # --- what is shown ------------------------------------------------------------------------------------------------

    def introduce_self(self) -> None:
        """Show this device, as the other device will name it, and the relay."""
        self.console.say(*facts(("This device", named(self.device.identity)), ("Relay", self.relay)), "")

    def show_large(self, title: str, code: str) -> None:
        """Show six digits as text, and also large if the terminal is wide enough."""
        console = self.console
        console.say(Styled(f"{title}  {spaced(code)}", "title"))
        if console.is_terminal():
            blocks = large(code, columns=shutil.get_terminal_size().columns, encoding=console.encoding)
            if blocks:
                console.say("", *[Styled(line, "title", whole=True) for line in blocks], "")

    def meet(self, met: Met) -> None:
        """Keep the other device, and report it to a program once."""
        first, self.met = self.met is None, met
        if first:
            self.console.step(
                {
                    "step": "peer",
                    "deviceId": met.peer.device_id,
                    "publicKey": encode_public_key(met.peer.public_key),
                    "friendlyName": met.peer.name,
                    "role": self.role,
                    "permissions": self.granted,
                    "known": met.known.to_json() if met.known else None,
                }
            )

    def peer_lines(self, met: Met) -> list[Shown]:
        """Return the lines about the other device: its identity, its role and permissions, its entry if it is trusted."""
        entry = self._entry(met)
        about: list[tuple[str, Hint]] = [
            ("Name", entry.friendly_name),
            ("Device ID", entry.device_id),
            ("Role", f"{entry.role}: {MEANING[entry.role]}"),
        ]
        if entry.role == CONTROLLER:
            about.append(("Permissions", permissions(entry) or "none"))
        lines: list[Shown] = [Styled("The other device", "title"), *facts(*about)]
        if met.known is not None:
            lines += ["", *refreshed(entry, Listed(met.known))]
        return lines

    def _entry(self, met: Met) -> DeviceEntry:
        return DeviceEntry.new(
            met.peer.public_key,
            met.peer.name,
            self.role,
            added_at=self.context.now(),
            permissions=self.granted,
        )

    @property
    def comparison(self) -> str:
        """The sentence that asks to compare device IDs. In version 1, the other screen may be one that shows none."""
        if self.version == 1:
            return "If the other screen shows a device ID, compare it: the TypeScript command line shows none."
        return "Compare the device ID with the one on the other screen."

    async def remarks(self, met: Met) -> list[Shown]:
        """Return the lines about what comes with trusting the other device: an earlier revocation or another state, a user."""
        home, lines = self.context.home, list[Shown]()
        if met.known is None:
            known = (await self.context.blocking(home.known)).get(met.peer.public_key)
            lines = ["", *refreshed(self._entry(met), known)] if known is not None else []
        self._hub_words = await self.context.blocking(home.hub_words, met.peer.public_key)
        remarks = await self.context.blocking(home.remarks, met.peer.public_key)
        if remarks is None:
            return lines
        if self.console.as_json:
            self.console.warn(remarks)
        return [*lines, Styled(remarks, "warning")]

    def conclude(self, paired: Paired, next_steps: Iterable[tuple[str, Hint]]) -> None:
        """Show what each device may do now."""
        entry = paired.entry
        done = "Paired again" if paired.known is not None else "Paired"
        self.console.say("", Styled(f"{done}: {named(entry)} is stored as {entry.role}.", "good"))
        self.console.say(*facts(*next_steps))
        self.console.step(
            {
                "step": "finished",
                "device": entry.to_json(),
                "refreshed": paired.known is not None,
                "replaced": paired.replaced.device_id if paired.replaced else None,
                **({"hubs": self._hub_words} if self._hub_words else {}),
            }
        )

    # --- time ---------------------------------------------------------------------------------------------------------

    def count_down(self, seconds: float, text: str) -> None:
        """Show the time that is left, until the next step.

        Args:
            seconds: the time.
            text: the status line, with ``{left}`` in it.
        """
        self.stop_counting()
        if self.console.is_terminal() and not self.console.as_json:
            self._counting = asyncio.get_running_loop().create_task(self._count_down(seconds, text))

    def stop_counting(self) -> None:
        """Stop and remove the countdown."""
        if self._counting is not None:
            self._counting.cancel()
            self._counting = None
        self.console.status()

    async def _count_down(self, seconds: float, text: str) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        with contextlib.suppress(OSError):  # the terminal was closed
            while (left := end - loop.time()) > 0:
                self.console.status(text.format(left=math.ceil(left)))
                await asyncio.sleep(left % 1 or 1)
