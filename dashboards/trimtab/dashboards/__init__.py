"""The web page, built: static files that the API serves. Their source is in `dashboards/web`."""

from pathlib import Path

__all__ = ["STATIC"]

STATIC: Path = Path(__file__).parent / "static"
"""The folder with the page's `index.html` and `assets`; the page is not built where it is missing."""
