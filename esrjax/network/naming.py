"""PyTorch's names of tensors and modules <-> Flax paths, by templates that read both ways.

Parts of a network are named as PyTorch named them, so most names are equal. Where they are not, a
template pairs the torch key with the Flax path:

    "block_{i}.c{j}_r.eval_conv.{leaf}": "block_{i}.c{j}.{leaf}"

`{i}`, `{j}`, `{k}`, `{n}` stand for numbers, any other name in braces for one part between dots.
The first template that fits is used.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_FIELD = re.compile(r"\{(\w+)\}")
_NUMBERS = frozenset("ijkn")
_LEAF = re.compile(r"\.\{leaf\}$")


@dataclass(frozen=True)
class Naming:
    """The names of one method: `to_torch` and `to_flax` undo each other."""

    templates: Mapping[str, str]

    def to_flax(self, key: str) -> str:
        """The path of a tensor or module that PyTorch calls `key`."""
        return _translate(key, list(self.templates.items()))

    def to_torch(self, path: str) -> str:
        """The torch key of the leaf or module at `path`."""
        return _translate(path, [(flax, torch) for torch, flax in self.templates.items()])


def _translate(name: str, templates: list[tuple[str, str]]) -> str:
    for source, target in templates:
        for ending in ("", _LEAF):
            fields = re.fullmatch(_pattern(_cut(source, ending)), name)
            if fields:
                return _cut(target, ending).format(**fields.groupdict())
    return name


def _cut(template: str, ending: str | re.Pattern[str]) -> str:
    """The template of the module that owns the leaf, if it names a leaf."""
    return _LEAF.sub("", template) if ending else template


def _pattern(template: str) -> str:
    parts = _FIELD.split(template)
    return "".join(
        (rf"(?P<{part}>\d+)" if part in _NUMBERS else rf"(?P<{part}>[^.]+)")
        if index % 2
        else re.escape(part)
        for index, part in enumerate(parts)
    )
