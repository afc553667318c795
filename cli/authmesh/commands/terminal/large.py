"""Six digits as large as a terminal shows them, to be read across a table."""

from __future__ import annotations

# Three by five, each dot two columns wide: a character is twice as high as it is wide.
_DIGITS = {
    "0": ("###", "# #", "# #", "# #", "###"),
    "1": (" # ", "## ", " # ", " # ", "###"),
    "2": ("###", "  #", "###", "#  ", "###"),
    "3": ("###", "  #", " ##", "  #", "###"),
    "4": ("# #", "# #", "###", "  #", "  #"),
    "5": ("###", "#  ", "###", "  #", "###"),
    "6": ("###", "#  ", "###", "# #", "###"),
    "7": ("###", "  #", " # ", " # ", " # "),
    "8": ("###", "# #", "###", "# #", "###"),
    "9": ("###", "# #", "###", "  #", "###"),
}
_BLOCK = "█"
_MARGIN = "  "
_GAP = "  "
_MIDDLE = "      "


def spaced(code: str) -> str:
    """Six digits as people read them aloud: ``482 916``."""
    return f"{code[:3]} {code[3:]}"


def can_show(text: str, encoding: str) -> bool:
    """True if an encoding has all these characters."""
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def large(code: str, *, columns: int, encoding: str) -> list[str]:
    """Six digits as lines of blocks; no lines where the terminal is too narrow for them.

    Args:
        code: six digits.
        columns: of the terminal.
        encoding: of the terminal; blocks are drawn with ``#`` where it has no others.
    """
    block = _BLOCK if can_show(_BLOCK, encoding) else "#"
    lines = []
    for row in zip(*(_DIGITS[digit] for digit in code), strict=True):
        wide = ["".join((block if dot == "#" else " ") * 2 for dot in dots) for dots in row]
        lines.append((_MARGIN + _GAP.join(wide[:3]) + _MIDDLE + _GAP.join(wide[3:])).rstrip())
    return lines if max(map(len, lines)) < columns else []
