"""A QR code on the terminal, drawn by segno: light modules are blocks, so that a dark terminal shows the code as on paper."""

from __future__ import annotations

import io

from authmesh.protocol.errors import AmeshError

from .large import can_show

#: Width of the quiet zone, in modules. The standard asks for four; readers accept two.
BORDER = 2
_BLOCKS = "▀▄█"


class MissingPackage(AmeshError):
    """A package that an option needs is not installed."""

    code = "missing_package"


class CannotDraw(AmeshError):
    """The terminal cannot show a QR code."""

    code = "cannot_draw"


def check(encoding: str) -> None:
    """Raise an error if a QR code cannot be drawn, before anything else is done.

    Raises:
        MissingPackage: segno is not installed.
        CannotDraw: the encoding of the terminal has no blocks.
    """
    try:
        import segno  # noqa: F401 -- optional: extra [cli]
    except ImportError:
        raise MissingPackage(
            "Drawing a QR code needs the package segno, which is not installed.",
            hint="Install it with pip install 'amesh-django[cli]', or omit --qr.",
        ) from None
    if not can_show(_BLOCKS, encoding):
        raise CannotDraw(f"The encoding of this terminal ({encoding}) cannot show a QR code.", hint="Omit --qr.")


def draw(text: str) -> list[str]:
    """Return *text* as the lines of a QR code, two rows of modules on each line.

    Args:
        text: what a reader finds in the code.
    """
    import segno  # optional: extra [cli]

    drawing = io.StringIO()
    segno.make_qr(text, error="m").terminal(drawing, border=BORDER, compact=True)
    return drawing.getvalue().splitlines()
