"""Search path of the checkpoints that a recipe names."""

import os
from pathlib import Path

from esrjax import published
from esrjax.errors import UserError

# environment variable, folder in it
_ROOTS = (("ESRJAX_DATA", ""), ("ESRJAX_DATA", "weights"), ("ESRJAX_REFERENCE", "weights"))


class CheckpointNotFound(UserError):
    """Raised when there is no checkpoint of a name."""


def find_checkpoint(name: str) -> Path:
    """Return the path of a checkpoint.

    Args:
        name: A path, or the name of a file in one of this machine's weight folders.

    Raises:
        CheckpointNotFound: There is no such file; lists the folders.
    """
    roots = [Path(os.environ[key]) / subfolder for key, subfolder in _ROOTS if os.environ.get(key)]
    roots += [published.weights_dir()] * (published.weights_dir() not in roots)
    for path in (Path(name), *(root / name for root in roots)):
        if path.exists():
            return path
    raise CheckpointNotFound(
        f"No such checkpoint: {name!r}",
        rule="a checkpoint is a path, a file in $ESRJAX_DATA, $ESRJAX_DATA/weights or "
        "$ESRJAX_REFERENCE/weights, or downloaded by `esrjax weights get`",
        location="; ".join(f"searched {root}" for root in roots) or None,
        remedy="check the name, or copy the file to one of these folders",
    )
