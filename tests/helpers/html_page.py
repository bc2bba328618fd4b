"""A page as a browser would find it, for tests of what writes pages."""

import json
from html.parser import HTMLParser
from typing import Any


class Page(HTMLParser):
    """Tags with their attributes, each script's and style's code, and the readable text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.raw:
            self._inside = tag
            self.raw[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.raw[self._inside][-1] += data
        else:
            self.text += data

    def having(self, attribute: str, tag: str | None = None) -> list[str]:
        """The values of an attribute, of all tags or of those of one name."""
        return [
            str(attrs[attribute]) for name, attrs in self.tags if attribute in attrs and tag in (None, name)
        ]

    @property
    def payload(self) -> dict[str, Any]:
        """The JSON in the first script, where the page has one for its code."""
        payload: dict[str, Any] = json.loads(self.raw["script"][0])
        return payload
