"""Generated blocks of documents, from `<!-- NAME: ... -->` to `<!-- end of NAME -->`."""

import re


def replace_block(page: str, name: str, text: str) -> str:
    """Return `page` with the contents of the block `name` replaced by `text`."""
    pattern = rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}\n{text}\n\n{match[2]}", page, flags=re.S)
