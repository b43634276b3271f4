"""Blocks of documents that programs write: `<!-- NAME: ... -->` to `<!-- end of NAME -->`."""

import re


def filled(page: str, name: str, text: str) -> str:
    """`page` with `text` as the block `name`."""
    marked = rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)"
    return re.sub(marked, lambda at: f"{at[1]}\n{text}\n\n{at[2]}", page, flags=re.S)
