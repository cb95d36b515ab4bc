"""HTML that opens without a network, reads on screen and on paper, and needs no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

__all__ = ["Link", "figure", "heading", "page", "paragraph", "preformatted", "table"]

_LONG = 60
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111; background: #fff; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; border-bottom: 1px solid #999; margin-top: 2.5rem; }
h3 { font-size: 1.05rem; margin-top: 1.8rem; }
.lead { font-size: 1.1rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: 0.9rem; }
.scroll { overflow-x: auto; }
.text { white-space: normal; text-align: left; min-width: 16rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; margin: 0.5rem 0; }
th, td { padding: 0.15rem 0.7rem 0.15rem 0; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 1px solid #444; white-space: normal; vertical-align: bottom; }
details { margin: 0.5rem 0; } summary { cursor: pointer; }
pre { font-size: 0.8rem; background: #f4f4f4; padding: 0.8rem; overflow-x: auto; white-space: pre-wrap; }
@media print { body { max-width: none; margin: 0; } figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .scroll { overflow: visible; } table { font-size: 0.65rem; }
  th, td { white-space: normal; overflow-wrap: anywhere; padding-right: 0.4rem; } .text { min-width: 8rem; } }
"""


@dataclass(frozen=True)
class Link:
    """A cell that leads to a file.

    Attributes:
        text: What is shown.
        path: Path of the file from the page; a directory ends in a slash.
    """

    text: str
    path: str


def page(title: str, parts: Sequence[str]) -> str:
    """A whole page.

    Args:
        title: Its title.
        parts: HTML.

    Returns:
        The text of the file.
    """
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An icon of no bytes, or a browser would ask the place it opened the page from.
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def heading(level: int, text: str) -> str:
    """A heading.

    Args:
        level: 1 to 3.
        text: Plain text.

    Returns:
        HTML.
    """
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, *, is_lead: bool = False) -> str:
    """A paragraph.

    Args:
        text: Plain text.
        is_lead: Whether it is set larger.

    Returns:
        HTML.
    """
    kind = ' class="lead"' if is_lead else ""
    return f"<p{kind}>{escape(text)}</p>"


def figure(png: bytes, caption: str) -> str:
    """A picture inside the page.

    Args:
        png: The picture.
        caption: What it shows; also read to those who do not see it.

    Returns:
        HTML.
    """
    data = base64.b64encode(png).decode()
    text = escape(caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{text}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, summary: str = "") -> str:
    """A table.

    Args:
        head: Names of the columns.
        rows: Cells: text, numbers, which are written with four digits, :class:`Link`, or None, a dash.
        summary: If given, the table is folded away under this line.

    Returns:
        HTML.
    """

    def line(cells: Sequence[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_cell(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    html = (
        f'<div class="scroll"><table><thead>{line(head, "th")}</thead>\n<tbody>{body}</tbody></table></div>'
    )
    return f"<details><summary>{escape(summary)}</summary>{html}</details>" if summary else html


def preformatted(text: str, summary: str) -> str:
    """Text as it is, folded away.

    Args:
        text: The text.
        summary: The line that stands for it.

    Returns:
        HTML.
    """
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, Link):
        return f'<a href="{escape(quote(value.path))}">{escape(value.text)}</a>'
    if isinstance(value, float):
        return f"{value:.4g}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.3e}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    # A long text, such as a cause, has a cell of its own kind, which breaks its lines.
    text = escape(str(value))
    return f'<div class="text">{text}</div>' if len(text) > _LONG else text
