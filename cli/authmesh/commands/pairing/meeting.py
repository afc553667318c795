"""What listen and invite share: how the two sides are shown, what time is left, and an end that says truly what was stored."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import math
import shutil
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from authmesh.device import AllowList, LocalDevice
from authmesh.pairing import Met, Paired, Pairing, Step
from authmesh.protocol.allow_list import CONTROLLER, DeviceEntry, Role
from authmesh.protocol.display import clean
from authmesh.protocol.errors import spelled
from authmesh.protocol.keys import encode_public_key
from authmesh.protocol.pairing.errors import PairingError

from ..spec import Context
from ..terminal.console import Console, Interrupted, Line, facts
from ..terminal.large import large, spaced
from ..terminal.prompts import Prompts
from ..words import MEANING, changes, named, permissions, when

V1_WARNING = (
    "Version 1 of pairing does not keep a malicious relay out: it can put a device of its own in the place of the other one, and no "
    "code shows it. Go on only if you trust the relay, and only for a peer that has nothing newer."
)
#: Steps that are told elsewhere, with more about them.
_TOLD_ELSEWHERE: tuple[Step, ...] = ("introduced", "finished")


class Meeting:
    """One pairing as the person here sees it.

    Args:
        context: what the front end handed over.
        relay: address of the relay.
        version: of pairing.
        role: what the other side will be here.
        granted: its permissions.
    """

    #: Name of the command.
    own = ""

    def __init__(self, context: Context, relay: str, version: int, role: Role, granted: dict[str, Any]) -> None:
        self.context = context
        self.console: Console = context.console
        self.prompts = Prompts(self.console)
        self.relay = relay
        self.version = version
        self.role: Role = role
        self.granted = granted
        self.device: LocalDevice = context.own_device()
        self.allow_list: AllowList = context.allow_list()
        self.met: Met | None = None
        self.reached: set[Step] = set()
        self._counting: asyncio.Task[None] | None = None
        if version == 1:
            self.console.warn(V1_WARNING)

    # --- running it ---------------------------------------------------------------------------------------------------

    def hold(self, pair: Callable[[Pairing], Coroutine[Any, Any, Paired]]) -> Paired:
        """Pair, in an event loop of its own.

        Raises:
            Interrupted: Ctrl-C; the sentence says what is stored.
            AmeshError: as :class:`Pairing`.
        """
        try:
            return asyncio.run(self._hold(pair))
        except KeyboardInterrupt:
            # All is over by now, what was being written as well: so it can be looked at.
            raise Interrupted(self._truth()) from None
        except PairingError as error:
            raise self._in_own_words(error) from None

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

    def _truth(self) -> str:
        if self.met is None:
            return "Interrupted. Nothing was stored."
        public_key = self.met.peer.public_key

        async def look() -> DeviceEntry | None:  # there, behind what may still be written after a second Ctrl-C
            return await self.context.blocking(self.allow_list.find, public_key)

        try:
            stored = asyncio.run(look())
        except Exception:  # the same list that is looked at later will say why
            return f"Interrupted. What is stored here can't be read; look at it: {self.context.command('list')}"
        if stored is None or stored == self.met.known:
            return f"Interrupted. Nothing was stored here. {self.elsewhere()}".strip()
        return (
            f"Interrupted, but {named(stored)} is stored by now as {stored.role}: {MEANING[stored.role]}. If that is not to be: "
            f"{self.context.command('revoke')} {stored.device_id}"
        )

    def elsewhere(self) -> str:
        """What the other side may have stored, once this one has stopped; a sentence or nothing."""
        raise NotImplementedError

    def _in_own_words(self, error: PairingError) -> PairingError:
        """Return the same error, with the commands in its hint spelled as this front end spells them."""
        spelled_error = copy.copy(error)
        spelled_error.hint = spelled(
            error.hint, lambda run: f"{self.context.command(run.name)} {run.arguments}".rstrip()
        )
        return spelled_error

    # --- steps --------------------------------------------------------------------------------------------------------

    def progress(self, step: Step) -> None:
        """See :class:`authmesh.pairing.Operator`."""
        self.reached.add(step)
        self.stop_counting()
        if step == "connecting":
            self.console.step({"step": step, "relay": self.relay, "version": self.version})
            self.console.status(" connecting to the relay")
        elif step not in _TOLD_ELSEWHERE:
            self.console.step({"step": step})
        words = self.words_for(step)
        if words is not None:
            self.console.say(*([words] if isinstance(words, str) else words))

    def words_for(self, step: Step) -> list[Line | str] | str | None:
        """What a step is for people."""
        raise NotImplementedError

    def ask_json(self, question: str, **more: Any) -> None:
        """Tell a program that a line on stdin is awaited."""
        self.console.step({"step": "question", "question": question, "seconds": self.context.timeouts.person, **more})

    # --- what is shown ------------------------------------------------------------------------------------------------

    def introduce_self(self) -> None:
        """This device, as the other side will name it, and the relay."""
        identity = self.device.identity
        own = ("This device", f"{identity.device_id} ({clean(identity.friendly_name)})")
        self.console.say(*facts(own, ("Relay", self.relay)), "")

    def show_large(self, title: str, code: str) -> None:
        """Six digits: large where a terminal has room, and as text in any case."""
        console = self.console
        console.say(Line(f"{title}  {spaced(code)}", "title"))
        if console.is_terminal():
            blocks = large(code, columns=shutil.get_terminal_size().columns, encoding=console.encoding)
            if blocks:
                console.say("", *[Line(line, "title", whole=True) for line in blocks], "")

    def meet(self, met: Met) -> None:
        """The other side is known from now on."""
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

    def peer_lines(self, met: Met) -> list[Line | str]:
        """Who the other side is, what it may do then, and what was before."""
        entry = DeviceEntry.new(
            met.peer.public_key,
            met.peer.name,
            self.role,
            added_at=self.context.now(),
            permissions=self.granted,
        )
        about = [
            ("Name", entry.friendly_name),
            ("Device id", entry.device_id),
            ("Role", f"{entry.role}: {MEANING[entry.role]}"),
        ]
        if entry.role == CONTROLLER:
            about.append(("Permissions", permissions(entry) or "none"))
        lines: list[Line | str] = [Line("The other device", "title"), *facts(*about)]
        if met.known is not None:
            known = f"It is known already, added {when(met.known.added_at)}, and will be refreshed:"
            lines += ["", known, *changes(entry, met.known)]
        return lines

    async def past(self, met: Met) -> list[Line | str]:
        """What is known of a device that is not trusted now."""
        past = None
        if met.known is None:
            past = await self.context.blocking(self.context.past, met.peer.public_key)
        if past is None:
            return []
        if self.console.as_json:
            self.console.warn(past)
        return [Line(past, "warning")]

    def conclude(self, paired: Paired, next_steps: Iterable[tuple[str, str]]) -> None:
        """It is done: who may now do what."""
        entry = paired.entry
        done = "Paired again" if paired.known is not None else "Paired"
        self.console.say("", Line(f"{done}: {named(entry)} is stored as {entry.role}.", "good"))
        self.console.say(*facts(*next_steps))
        self.console.step(
            {
                "step": "finished",
                "device": entry.to_json(),
                "refreshed": paired.known is not None,
                "replaced": paired.replaced.device_id if paired.replaced else None,
            }
        )

    # --- time ---------------------------------------------------------------------------------------------------------

    def count_down(self, seconds: float, text: str) -> None:
        """Show the time that is left, until the next step.

        Args:
            seconds: how long it lasts.
            text: what is shown, with ``{left}``.
        """
        self.stop_counting()
        if self.console.is_terminal() and not self.console.as_json:
            self._counting = asyncio.get_running_loop().create_task(self._count_down(seconds, text))

    def stop_counting(self) -> None:
        """The countdown goes."""
        if self._counting is not None:
            self._counting.cancel()
            self._counting = None
        self.console.status()

    async def _count_down(self, seconds: float, text: str) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        with contextlib.suppress(OSError):  # whoever looked at the terminal is gone
            while (left := end - loop.time()) > 0:
                self.console.status(text.format(left=math.ceil(left)))
                await asyncio.sleep(left % 1 or 1)
