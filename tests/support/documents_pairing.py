"""Plays the pairing of a document: two terminals, with the codes of this run in place of those in the document."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from authmesh.commands.terminal.large import large, spaced
from tests.commands.pairing_terminals import one_time_code, verification_code

if TYPE_CHECKING:
    from tests.support.documents import Block, Stage

Screen = tuple[list[str], str]


def play_pairing(stage: Stage, listening: Block, inviting: Block) -> tuple[Screen, Screen]:
    """Pair two machines. Return for each screen the expected lines and the output."""
    ((listen, target_shows),), ((invite, controller_shows),) = listening.commands, inviting.commands
    once, verification = _shown("One-time code", target_shows), _shown("Verification code", controller_shows)
    with stage.at(listening.words, listen) as there:
        code = one_time_code(there)
        with stage.at(inviting.words, invite.replace(once, code)) as here:
            shown = verification_code(here)
            there.expect("Verification code: ")
            there.type(f"{spaced(shown)}\n")
            here.expect("[y/N] ")
            here.type("y\n")
            assert (there.end(), here.end()) == (0, 0), there.shown + here.shown
    real = {spaced(once): spaced(code), once: code, spaced(verification): spaced(shown)}
    return (
        (_of_this_run(target_shows, real, once, code, there.shown), there.shown),
        (_of_this_run(controller_shows, real, verification, shown, here.shown), here.shown),
    )


def _shown(title: str, lines: list[str]) -> str:
    (code,) = re.findall(rf"^{title}  (\d{{3}} \d{{3}})$", "\n".join(lines), re.MULTILINE)
    return str(code).replace(" ", "")


def _of_this_run(lines: list[str], real: dict[str, str], drawn: str, code: str, found: str) -> list[str]:
    """Return the lines with the codes of this run, after comparing the large digits, which differ in each run."""
    digits = [line for line in lines if "█" in line]
    assert digits == large(drawn, columns=100, encoding="utf-8"), f"these are not the digits of {drawn}"
    assert "\n".join(large(code, columns=100, encoding="utf-8")) in found
    kept = "\n".join(line for line in lines if "█" not in line)
    for old, new in real.items():
        kept = kept.replace(old, new)
    return kept.split("\n")
