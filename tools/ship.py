"""Put the weights of a finished run where the package ships them: ship.py NAME RUN."""

import sys
from pathlib import Path

from esrjax import registry
from esrjax.model import open_method
from esrjax.network import archive
from esrjax.network.naming import Naming
from esrjax.network.weights import tensors
from esrjax.training import folder

SHIPPED = Path(__file__).parents[1] / "plugins" / "pretrained"
NOTE = (
    "trained by esrjax, recipe {sha256}, on T91 (Yang et al., 2010: no terms stated) and BSD200, "
    "training pictures of Berkeley's segmentation data set (Martin et al., 2001: for "
    "non-commercial research and education), without 302003, which is in Set5; for research use"
)


def main(name: str, run: str) -> None:
    recipe = folder.read(Path(run))
    if recipe is None or recipe.method != name:
        sys.exit(f"ship.py: {run} holds no finished run of {name}")
    model, method = open_method(name, run), registry.plain(name)
    note = NOTE.format(sha256=recipe.sha256)
    said = archive.describe(name, method, "deploy", model.sizes, note=note)
    target = SHIPPED / f"{name}.safetensors"
    archive.write_safetensors(target, tensors(model.net, Naming(method.torch_names)), said)
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
