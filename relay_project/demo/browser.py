"""A browser as small as the demo needs: pages, their forms, cookies."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

import httpx

from .stage import DemoError


@dataclass
class Form:
    """A form of a page.

    Attributes:
        action: where it is sent.
        method: how.
        fields: what a browser would send unasked.
        boxes: what a box to tick would send; of several, the last.
        names: of all fields.
    """

    action: str = ""
    method: str = "get"
    fields: dict[str, str] = field(default_factory=dict)
    boxes: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(Form(values.get("action", ""), values.get("method", "get").lower()))
        elif tag in ("input", "textarea", "select") and self.forms and (name := values.get("name")):
            form = self.forms[-1]
            form.names.add(name)
            if tag == "input" and values.get("type", "text") in ("hidden", "text"):
                form.fields.setdefault(name, values.get("value", ""))
            elif values.get("type") == "checkbox":
                form.boxes[name] = values.get("value", "on")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@dataclass(frozen=True)
class Page:
    """What came back.

    Attributes:
        url: where it is, after redirects.
        status: HTTP status.
        text: what a person reads, white space collapsed.
        forms: its forms.
    """

    url: str
    status: int
    text: str
    forms: list[Form]

    def form(self, *names: str) -> Form:
        """The form that has all these fields.

        Raises:
            DemoError: there is none.
        """
        for form in self.forms:
            if set(names) <= form.names:
                return form
        raise DemoError(f"The page {self.url} (status {self.status}) has no form with {', '.join(names)}.")


class Browser:
    """Keeps cookies and follows redirects."""

    def __init__(self) -> None:
        self._client = httpx.Client(follow_redirects=True, timeout=30, trust_env=False)

    def close(self) -> None:
        """Forget everything."""
        self._client.close()

    def open(self, url: str) -> Page:
        """Go to a page."""
        return _page(self._client.get(url))

    def submit(self, page: Page, form: Form, **values: str) -> Page:
        """Send a form of *page*, filled in."""
        url = httpx.URL(page.url).join(form.action)
        return _page(
            self._client.request(form.method, url, data={**form.fields, **values}, headers={"Referer": page.url})
        )


def _page(response: httpx.Response) -> Page:
    parser = _Forms()
    parser.feed(response.text)
    return Page(str(response.url), response.status_code, " ".join(" ".join(parser.text).split()), parser.forms)
