"""A page as a strict reader sees it."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from urllib.parse import unquote

__all__ = ["Page"]

_VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Every tag is closed in order, nothing is fetched from anywhere, links lead to files beside the page.

    Attributes:
        images: Picture and alternative text of each figure.
        cells: Texts of the cells of tables.
        links: Targets.
        text: All text.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[tuple[bytes, str]] = []
        self.cells: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag != "script"
        if tag == "a":
            self.links.append(unquote(str(given.pop("href"))))
            assert "://" not in self.links[-1]
        for name in ("src", "href"):
            assert str(given.get(name, "data:")).startswith("data:"), f"{tag} fetches {given[name]}"
        assert not any(name.startswith("on") for name in given)
        if tag == "img":
            kind, _, data = str(given["src"]).partition(";base64,")
            assert kind == "data:image/png"
            self.images.append((base64.b64decode(data, validate=True), str(given["alt"])))
        if tag == "td":
            self.cells.append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        assert "url(" not in data
        assert "@import" not in data
        self.text += data
        if "td" in self.open:
            self.cells[-1] += data
