"""The report as one file of HTML that asks for nothing from anywhere."""

import base64
import hashlib
import html
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from esrjax.errors import UserError

# In the order in which they are run: each may use those before it.
SCRIPTS = (
    "elements tip scales table labels pareto distributions divider region crops pictures report"
).split()

_UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


class UnwritablePage(UserError):
    """A place that the page cannot be put into."""


def render(content: Mapping[str, Any]) -> str:
    """The page of `esrjax.contest.report.content`.

    Its policy allows the style and the script that it carries, by their hashes, and pictures in
    data URIs: a browser refuses everything else.
    """
    style = _asset("style.css")
    script = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    return Template(_asset("page.html")).substitute(
        title=html.escape(content["title"]),
        policy=_policy(style, script),
        style=style,
        script=script,
        data=_embedded(content),
    )


def require_place(path: Path) -> None:
    """Raise `UnwritablePage` unless a page can be written to `path`."""
    there = next(p for p in path.absolute().parents if p.exists())
    good = path.suffix in (".html", ".htm") and not path.is_dir()
    if not good or not there.is_dir() or not os.access(there, os.W_OK):
        raise UnwritablePage(
            f"the report cannot be written to '{path}'",
            rule="a report is a file NAME.html in a folder that can be written into",
            place=str(there if good else path),
            remedy="name another file with -o",
        )


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Put the page into a file, whole or not at all."""
    require_place(path)
    partial = path.with_name(f".esrjax-{secrets.token_hex(6)}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.write_text(render(content), "utf-8")
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink()


def _asset(name: str) -> str:
    return (resources.files("esrjax.contest.report") / "assets" / name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    allowed = {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'"}
    allowed |= {"style-src": _hash(style), "script-src": _hash(script), "form-action": "'none'"}
    return "; ".join(f"{what} {whence}" for what, whence in allowed.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _embedded(content: Mapping[str, Any]) -> str:
    """JSON in which nothing can end the element that holds it; what is not finite is an error."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE)
