"""A small browser for the demo: pages, forms and cookies."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

import httpx

from .stage import DemoError


@dataclass
class Form:
    """A form of a page.

    Attributes:
        action: the URL that the form is sent to.
        method: the HTTP method.
        fields: the values that a browser sends by itself.
        boxes: the values of the checkboxes; of several with one name, the last.
        names: the names of all fields.
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
    """A page that was opened.

    Attributes:
        url: the URL after redirects.
        status: the HTTP status.
        text: the text that a person reads, with white space collapsed.
        forms: the forms of the page.
    """

    url: str
    status: int
    text: str
    forms: list[Form]

    def form(self, *names: str) -> Form:
        """Return the form that has all these fields.

        Raises:
            DemoError: there is no such form.
        """
        for form in self.forms:
            if set(names) <= form.names:
                return form
        raise DemoError(f"The page {self.url} (status {self.status}) has no form with {', '.join(names)}.")


class Browser:
    """A browser that keeps cookies and follows redirects."""

    def __init__(self) -> None:
        self._client = httpx.Client(follow_redirects=True, timeout=30, trust_env=False)

    def close(self) -> None:
        """Close the browser."""
        self._client.close()

    def open(self, url: str) -> Page:
        """Open a page."""
        return _page(self._client.get(url))

    def submit(self, page: Page, form: Form, **values: str) -> Page:
        """Fill in a form of *page*, send it, and return the next page."""
        url = httpx.URL(page.url).join(form.action)
        return _page(
            self._client.request(form.method, url, data={**form.fields, **values}, headers={"Referer": page.url})
        )


def _page(response: httpx.Response) -> Page:
    parser = _Forms()
    parser.feed(response.text)
    return Page(str(response.url), response.status_code, " ".join(" ".join(parser.text).split()), parser.forms)
