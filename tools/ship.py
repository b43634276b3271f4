"""Export of a finished run to plugins/pretrained/, as shipped weights: ship.py NAME RUN."""

import sys
from pathlib import Path

from esrjax import registry
from esrjax.inference import open_method
from esrjax.nn import checkpoint_io
from esrjax.nn.state_dict import KeyMap, to_state_dict
from esrjax.training import checkpoint

SHIPPED = Path(__file__).parents[1] / "plugins" / "pretrained"
NOTE = (
    "trained by esrjax, recipe {sha256}, on T91 (Yang et al., 2010: no terms stated) and BSD200, "
    "training images of the Berkeley segmentation dataset (Martin et al., 2001: for "
    "non-commercial research and education), without 302003, which is in Set5; for research use"
)


def main(name: str, run: str) -> None:
    """Write the weights of `run` with metadata that names recipe and training images."""
    recipe = checkpoint.read_recipe(Path(run))
    if recipe is None or recipe.method != name:
        sys.exit(f"ship.py: {run} is not a finished run of {name}")
    model, method = open_method(name, run), registry.get_method(name)
    note = NOTE.format(sha256=recipe.sha256)
    metadata = checkpoint_io.make_metadata(name, method, "deploy", model.hparams, note=note)
    target = SHIPPED / f"{name}.safetensors"
    checkpoint_io.write_safetensors(
        target, to_state_dict(model.net, KeyMap(method.torch_names)), metadata
    )
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
