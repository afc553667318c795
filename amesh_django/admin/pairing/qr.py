"""A QR code as inline SVG, without style: a strict Content-Security-Policy allows it."""

from __future__ import annotations

from django.utils.html import format_html
from django.utils.safestring import SafeString

# Width of the quiet zone around the code, in modules.
_BORDER = 4


def qr_code(text: str, label: str) -> SafeString | None:
    """Return a text as a QR code; None if segno is not installed.

    Args:
        text: what a reader finds in the code.
        label: the name of the picture, for people who do not see it.
    """
    try:
        import segno
    except ImportError:
        return None
    rows = [bytes(row) for row in segno.make_qr(text, error="m").matrix]
    size = len(rows) + 2 * _BORDER
    dark = [
        f"M{x + _BORDER} {y + _BORDER}h1v1h-1z" for y, row in enumerate(rows) for x, module in enumerate(row) if module
    ]
    return format_html(
        '<svg class="amesh-qr" role="img" aria-label="{}" viewBox="0 0 {size} {size}" width="198" height="198" '
        'shape-rendering="crispEdges"><path fill="#fff" d="M0 0h{size}v{size}h-{size}z"/><path fill="#000" d="{}"/></svg>',
        label,
        "".join(dark),
        size=size,
    )
