"""The package that `esrjax method new NAME` creates: a method, its test and pyproject.toml."""

import keyword
from pathlib import Path
from string import Template

from esrjax import registry
from esrjax.errors import UserError


class BadName(UserError):
    """Raised when a name is no valid name for a method, or another package has it."""


class FolderInUse(UserError):
    """Raised when the folder of a new package is not empty."""


def write_package(name: str, folder: Path) -> tuple[Path, ...]:
    """Write the package and return its files.

    Args:
        name: The method's name, a lower-case Python identifier.
        folder: A new or empty folder.

    Raises:
        BadName: The name is invalid, or a method has it.
        FolderInUse: The folder is not empty.
    """
    _check_name(name)
    _check_empty(folder)
    values = {"name": name, "package": f"esrjax_{name}", "network": _class_name(name)}
    files = {path: Template(text).substitute(values) for path, text in FILES.items()}
    return tuple(_write(folder / path.format(**values), text) for path, text in files.items())


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.lstrip("\n"))
    return path


def _class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _check_name(name: str) -> None:
    if name.isidentifier() and not keyword.iskeyword(name) and name == name.lower():
        if name not in registry.names():
            return
        raise BadName(
            f"The method {name!r} already exists, in {registry.distribution_of(name)}",
            rule="names of methods are unique",
            remedy="choose another name",
        )
    raise BadName(
        f"Invalid method name {name!r}",
        rule="a method name is a Python identifier in lower case",
        remedy="use letters, digits and underscores, for example my_net",
    )


def _check_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderInUse(
            f"{str(folder)!r} already exists",
            rule="a new package is written to a new or empty folder; nothing is overwritten",
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
"""$network: describe the method in three sentences.

Three convolutions and a pixel shuffle on top of nearest-neighbour upsampling: change them.
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
        residual = self.tail(jax.nn.relu(self.body(jax.nn.relu(self.head(x)))))
        nearest = jnp.repeat(x, self.scale**2, axis=-1)
        return pixel_shuffle(nearest + residual, self.scale)


METHOD = Method(
    network=$network,
    team="my team",
    paper="title and URL",
    license="Apache-2.0",
    description=__doc__,
)
''',
    "tests/test_{name}.py": """
from esrjax import registry
from esrjax.testing import check_method


def test_method_passes_all_checks():
    check_method(registry.get_method("$name"))
""",
}
