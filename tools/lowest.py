"""Print the lower bound of every dependency in pyproject.toml as a pip constraint: `jax==0.10`."""

import re
import tomllib
from pathlib import Path


def lower_bounds() -> list[str]:
    """Return `name==version` of the dependencies, and of the extras that the tests need."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [*project["dependencies"], *extras["demo"], *extras["log"], *extras["dev"]]
    bounds = (re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement) for requirement in requirements)
    return [f"{match[1]}=={match[2]}" for match in bounds if match]


if __name__ == "__main__":
    print("\n".join(lower_bounds()))
