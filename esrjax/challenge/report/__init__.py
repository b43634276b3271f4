"""HTML report of a ranking: one file with its style, script and data, and no requests.

It shows a table, plots and an image comparison; `content` has the data of the page.
"""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from esrjax.errors import UnwritableFile
from esrjax.io import check_writable, write_bytes

# In order of execution: each script may use those before it.
SCRIPTS = (
    "elements tip scales table labels pareto distributions divider region crops pictures report"
).split()

# Characters that could end the <script> element around the JSON, or break old parsers.
_JSON_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def render_page(content: Mapping[str, Any]) -> str:
    """Return the HTML page.

    Its content security policy allows only its own style and script, by hash, and images in data
    URIs; a browser refuses every other resource.

    Args:
        content: Data from `esrjax.challenge.report.content.build_content`.

    Raises:
        ValueError: A number in `content` is not finite.
    """
    style = _read_asset("style.css")
    script = "\n".join(_read_asset(f"{name}.js") for name in SCRIPTS)
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Template(_read_asset("page.html")).substitute(
        title=html.escape(content["title"]),
        policy=f"default-src 'none'; img-src data:; base-uri 'none'; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; form-action 'none'",
        style=style,
        script=script,
        data=data.translate(_JSON_ESCAPES),
    )


def check_page(path: Path) -> None:
    """Raise `UnwritableFile` unless a page can be written to `path`."""
    check_writable(path)
    if path.suffix not in (".html", ".htm"):
        raise UnwritableFile(
            f"Cannot write the report to '{path}'",
            rule="a report is a file NAME.html",
            location=str(path),
            remedy="name another file with -o",
        )


def write_page(path: Path, content: Mapping[str, Any]) -> None:
    """Write the page atomically; create its folder if needed.

    Args:
        path: File to write, `.html` or `.htm`.
        content: Data from `esrjax.challenge.report.content.build_content`.

    Raises:
        UnwritableFile: The page cannot be written there.
        ValueError: A number in `content` is not finite; an existing file is unchanged.
    """
    check_page(path)
    write_bytes(path, render_page(content).encode())


def _read_asset(name: str) -> str:
    return (resources.files("esrjax.challenge.report") / "assets" / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
