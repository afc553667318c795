"""drf-spectacular: how a schema describes AmeshAuthentication. The app imports this module if a project uses drf-spectacular."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

try:
    from drf_spectacular.drainage import set_override
    from drf_spectacular.extensions import OpenApiAuthenticationExtension
except ModuleNotFoundError:
    raise ImportError(
        "amesh_django.openapi needs drf-spectacular, which is not installed. Run: pip install 'amesh-django[openapi]'"
    ) from None

from authmesh.protocol.header import SCHEME

if TYPE_CHECKING:
    from drf_spectacular.openapi import AutoSchema

__all__ = ["AmeshAuthenticationScheme"]


class AmeshAuthenticationScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # __init_subclass__
    """The security scheme ``AuthMesh``, for AmeshAuthentication and its subclasses.

    To describe a class of your own differently, write an extension for it. Its priority is higher.
    """

    target_class = "amesh_django.drf.AmeshAuthentication"
    match_subclasses = True
    priority = -1
    name = SCHEME

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, Any]:
        """Return the security scheme: a scheme of the HTTP Authorization header."""
        # The class and its subclasses share the name on purpose, which drf-spectacular otherwise reports.
        set_override(type(self.target), "suppress_collision_warning", True)
        return {
            "type": "http",
            "scheme": SCHEME,
            "description": "Each request is signed with the key of a trusted device. A client signs it; it cannot be typed in.",
        }
