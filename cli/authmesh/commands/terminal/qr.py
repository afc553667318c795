"""A QR code on the terminal, two rows of it on each line."""

from __future__ import annotations

from authmesh.protocol.errors import AmeshError

from .large import can_show

#: Around the code, in modules; readers want four, and take two.
BORDER = 2
# Light modules are drawn: on a dark terminal the code then looks as on paper.
_HALVES = {(False, False): " ", (True, False): "▀", (False, True): "▄", (True, True): "█"}


class MissingPackage(AmeshError):
    """A package is not installed that this option needs."""

    code = "missing_package"


class CannotDraw(AmeshError):
    """This terminal can't show a QR code."""

    code = "cannot_draw"


def check(encoding: str) -> None:
    """See that a QR code can be drawn, before anything is begun.

    Raises:
        MissingPackage: segno is not installed.
        CannotDraw: the terminal has no blocks.
    """
    try:
        import segno  # noqa: F401
    except ImportError:
        raise MissingPackage(
            "Drawing a QR code needs the package segno. Install it: pip install 'amesh-django[cli]'; or leave --qr out."
        ) from None
    if not can_show("".join(_HALVES.values()), encoding):
        raise CannotDraw(f"A QR code can't be drawn in the encoding of this terminal ({encoding}). Leave --qr out.")


def draw(text: str) -> list[str]:
    """*text* as a QR code, light on dark.

    Args:
        text: what a reader finds in it.
    """
    import segno

    rows = [[not dark for dark in row] for row in segno.make_qr(text, error="m").matrix_iter(border=BORDER)]
    if len(rows) % 2:
        rows.append([False] * len(rows[0]))
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return ["".join(_HALVES[pair] for pair in zip(upper, lower, strict=True)) for upper, lower in pairs]
