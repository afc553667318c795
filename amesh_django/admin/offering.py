"""Names that can be granted as checkboxes, if the settings know them all."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy

from amesh_django.conf import problems
from amesh_django.grantable import Kind, grantable, permissions_to_grant

#: Permissions that amesh itself reads.
OWN_PERMISSIONS = {
    "shell": gettext_lazy("It may open a shell."),
    "revoke": gettext_lazy("It is a hub, and revokes devices on this server."),
    "enroll": gettext_lazy("It is a hub, and adds devices on this server."),
}


def offer(form: forms.Form, actor: Any, kind: Kind, field: str, also: Any = ()) -> None:
    """Replace a field for names by checkboxes, without the names that a person may not grant. Without any, remove it.

    If every name may be granted, the field stays as it is. If the settings are wrong, no name can be granted.

    Args:
        form: the form.
        actor: the person.
        kind: of the names.
        field: name of the field.
        also: names that are offered even if the settings no longer know them: those that are granted already.
    """
    if problems():  # the banner says which settings are wrong
        del form.fields[field]
        return
    known = grantable(kind)
    if known is None:
        return
    texts: dict[str, Any] = {name: entry.text for name, entry in known.items()}
    texts |= OWN_PERMISSIONS if kind == "permission" else {}
    choices = [
        (name, f"{name}: {text}") for name, text in texts.items() if actor.has_perms(permissions_to_grant(kind, [name]))
    ]
    choices += [(name, name) for name in also if name not in dict(choices)]
    if not choices:
        del form.fields[field]
        return
    old = form.fields[field]
    form.fields[field] = forms.MultipleChoiceField(
        label=old.label, required=False, initial=old.initial, choices=choices, widget=forms.CheckboxSelectMultiple
    )
