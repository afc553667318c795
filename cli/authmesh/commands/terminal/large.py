"""Six digits as large as a terminal shows them, readable across a table."""

from __future__ import annotations

# Three by five dots, each two columns wide, because a character is twice as high as it is wide.
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
    """Return six digits as people read them aloud: ``482 916``."""
    return f"{code[:3]} {code[3:]}"


def can_show(text: str, encoding: str) -> bool:
    """Return True if an encoding has all characters of *text*."""
    try:
        text.encode(encoding)
    except (UnicodeError, LookupError):
        return False
    return True


def large(code: str, *, columns: int, encoding: str) -> list[str]:
    """Return six digits as lines of blocks, or no lines if the terminal is too narrow.

    Args:
        code: six digits.
        columns: width of the terminal.
        encoding: encoding of the terminal; an encoding without blocks gets ``#``.
    """
    block = _BLOCK if can_show(_BLOCK, encoding) else "#"
    lines = []
    for row in zip(*(_DIGITS[digit] for digit in code), strict=True):
        wide = ["".join((block if dot == "#" else " ") * 2 for dot in dots) for dots in row]
        lines.append((_MARGIN + _GAP.join(wide[:3]) + _MIDDLE + _GAP.join(wide[3:])).rstrip())
    return lines if max(map(len, lines)) < columns else []
