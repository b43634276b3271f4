"""Where files of weights that a recipe names are looked for."""

import os
from pathlib import Path

from esrjax import published
from esrjax.errors import UserError

# environment variable, folder in it
_ROOTS = (("ESRJAX_DATA", ""), ("ESRJAX_DATA", "weights"), ("ESRJAX_REFERENCE", "weights"))


class WeightsNotFound(UserError):
    """A name behind which there is no file of weights."""


def find_weights(name: str) -> Path:
    """A path as it is, else a file of that name in the folders of weights of this machine."""
    roots = [Path(os.environ[key]) / inner for key, inner in _ROOTS if os.environ.get(key)]
    roots += [published.folder()] * (published.folder() not in roots)
    for path in (Path(name), *(root / name for root in roots)):
        if path.exists():
            return path
    raise WeightsNotFound(
        f"there are no weights {name!r}",
        rule="weights are a path, or a file of $ESRJAX_DATA, $ESRJAX_DATA/weights or "
        "$ESRJAX_REFERENCE/weights, or one that `esrjax weights get` has brought",
        place="; ".join(f"looked in {root}" for root in roots) or None,
        remedy="check the name, or put the file there",
    )
