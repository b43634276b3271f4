"""A package that registers a new method: what `esrjax new NAME` writes."""

import keyword
from pathlib import Path
from string import Template

from esrjax import registry
from esrjax.errors import UserError


class BadName(UserError):
    """A name that no method can have."""


class FolderInUse(UserError):
    """A folder that already holds something."""


def write(name: str, folder: Path) -> tuple[Path, ...]:
    """Write the package into `folder`, which must be new or empty; the files, in order."""
    _require_name(name)
    _require_empty(folder)
    words = {"name": name, "package": f"esrjax_{name}", "network": _camel(name)}
    files = {path: Template(text).substitute(words) for path, text in FILES.items()}
    return tuple(_put(folder / path.format(**words), text) for path, text in files.items())


def _put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.lstrip("\n"))
    return path


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _require_name(name: str) -> None:
    if name.isidentifier() and not keyword.iskeyword(name) and name == name.lower():
        if name not in registry.names():
            return
        raise BadName(
            f"{name!r} is taken by {registry.origin(name)}",
            rule="a name belongs to one package",
            remedy="choose another name",
        )
    raise BadName(
        f"{name!r} cannot be the name of a method",
        rule="a name is a Python identifier in lower case",
        remedy="use letters, digits and underscores, for instance my_net",
    )


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderInUse(
            f"{str(folder)!r} already exists",
            rule="a new package goes into a new or empty folder; nothing is overwritten",
            remedy="choose another folder with -o",
        )


FILES = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "esrjax-$name"
version = "0.1.0"
dependencies = ["esrjax"]

[project.entry-points."esrjax.methods"]
$name = "$package:METHOD"

[tool.setuptools]
packages = ["$package"]

[tool.setuptools.package-data]
$package = ["*.safetensors"]
""",
    "{package}/__init__.py": '''
"""$network: say in three sentences what it is.

Three convolutions and a pixel shuffle on top of nearest-neighbour upsampling: a start to change.
"""

import jax
import jax.numpy as jnp
from esrjax.method import Method
from esrjax.network.layers import Conv2d
from esrjax.network.words import pixel_shuffle
from flax import nnx


class $network(nnx.Module):
    """`(N, h, w, 3) -> (N, scale·h, scale·w, 3)`."""

    def __init__(self, *, rngs: nnx.Rngs, channels: int = 16, scale: int = 4):
        self.scale = scale
        self.head = Conv2d(3, channels, rngs=rngs)
        self.body = Conv2d(channels, channels, rngs=rngs)
        self.tail = Conv2d(channels, 3 * scale**2, rngs=rngs)

    def __call__(self, x):
        detail = self.tail(jax.nn.relu(self.body(jax.nn.relu(self.head(x)))))
        nearest = jnp.repeat(x, self.scale**2, axis=-1)
        return pixel_shuffle(nearest + detail, self.scale)


METHOD = Method(
    network=$network,
    team="my team",
    paper="where it is described",
    license="Apache-2.0",
    card=__doc__,
)
''',
    "tests/test_{name}.py": """
from esrjax import registry
from esrjax.testing import check_method


def test_it_is_a_method():
    check_method(registry.method("$name"))
""",
}
