"""Writes docs/errors.md: ``python -m tests.errors``."""

from __future__ import annotations

from tests.errors.catalogue import DOCUMENT, as_markdown

DOCUMENT.write_text(as_markdown(), encoding="utf-8")
