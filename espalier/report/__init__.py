"""Records to one self-contained HTML page. JSON is the source; the page is rendered from it."""

from __future__ import annotations

from espalier.report.model import Report
from espalier.report.render import render

__all__ = ["Report", "render"]
