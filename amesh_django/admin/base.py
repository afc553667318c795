"""The base of all model admins: ``AMESH["ADMIN_BASE"]``, and what their own pages have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib.admin import AdminSite, ModelAdmin, ShowFacets
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.functional import Promise
from django.utils.module_loading import import_string

from amesh_django.trust.chain import Actor

if TYPE_CHECKING:
    from django.db.models.options import Options


def base_class() -> type[ModelAdmin[Any]]:
    """Return the class that ``AMESH["ADMIN_BASE"]`` names, such as ``unfold.admin.ModelAdmin``; by default, that of Django.

    If it cannot be used, return that of Django: a system check says what is wrong with the setting.
    """
    raw = getattr(settings, "AMESH", {})
    name = raw.get("ADMIN_BASE") if isinstance(raw, dict) else None
    if not name:
        return ModelAdmin
    try:
        found = import_string(str(name))
    except ImportError:
        return ModelAdmin
    return found if isinstance(found, type) and issubclass(found, ModelAdmin) else ModelAdmin


class Pages:
    """A model admin with pages of its own. A mixin, which goes before the model admin."""

    #: Numbers beside the filters would count all rows once for each choice.
    show_facets = ShowFacets.NEVER
    object_history_template: Any = "admin/amesh/object_history.html"

    if TYPE_CHECKING:
        admin_site: AdminSite
        opts: Options[Any]

    def page(self, name: str, *args: Any, model: str = "") -> str:
        """Return the address of a page.

        Args:
            name: such as ``changelist``.
            args: what the address has in it.
            model: the model whose page it is, in lower case. Defaults to that of this model admin.
        """
        name = f"admin:{self.opts.app_label}_{model or self.opts.model_name}_{name}"
        return reverse(name, args=args, current_app=self.admin_site.name)

    def answer(
        self, request: HttpRequest, template: str, title: str | Promise, context: dict[str, Any], *, status: int = 200
    ) -> HttpResponse:
        """Return a page that looks like those of the admin.

        Args:
            request: the request.
            template: path of the template, below ``admin/amesh``.
            title: the heading.
            context: what the template needs.
            status: of the response.
        """
        request.current_app = self.admin_site.name
        everywhere = {**self.admin_site.each_context(request), "title": title, "opts": self.opts}
        return TemplateResponse(request, f"admin/amesh/{template}", {**everywhere, **context}, status=status)

    @staticmethod
    def actor(request: HttpRequest) -> Actor:
        """Return the person who is logged in, as the audit log names them."""
        return Actor(request.user.get_username(), "user")
