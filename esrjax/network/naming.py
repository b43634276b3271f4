"""Mapping of PyTorch's state-dict keys to Flax paths and back, by templates.

Submodules have the names of the official PyTorch code, so that most keys are equal to their paths.
Where they are not, a template pairs the torch key with the Flax path:

    "block_{i}.c{j}_r.eval_conv.{leaf}": "block_{i}.c{j}.{leaf}"

`{i}`, `{j}`, `{k}`, `{n}` match numbers, any other name in braces one component between dots. The
first template that matches is used.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_FIELD = re.compile(r"\{(\w+)\}")
_INDEX_FIELDS = frozenset("ijkn")  # match numbers only
_LEAF_SUFFIX = re.compile(r"\.\{leaf\}$")


@dataclass(frozen=True)
class KeyMap:
    """State-dict keys of one method; `to_torch` and `to_flax` are inverse to each other.

    Attributes:
        templates: Torch key -> Flax path, for those that differ.
    """

    templates: Mapping[str, str]

    def to_flax(self, key: str) -> str:
        """Return the Flax path of a tensor or module with the torch key `key`."""
        return _translate(key, list(self.templates.items()))

    def to_torch(self, path: str) -> str:
        """Return the torch key of the parameter or module at a Flax path."""
        return _translate(path, [(flax, torch) for torch, flax in self.templates.items()])


def _translate(name: str, templates: list[tuple[str, str]]) -> str:
    for source, target in templates:
        for suffix in ("", _LEAF_SUFFIX):  # as a tensor's key, then as that of its module
            fields = re.fullmatch(_template_regex(_without_leaf(source, suffix)), name)
            if fields:
                return _without_leaf(target, suffix).format(**fields.groupdict())
    return name


def _without_leaf(template: str, suffix: str | re.Pattern[str]) -> str:
    """Return the template of the module that a leaf belongs to; unchanged without a suffix."""
    return _LEAF_SUFFIX.sub("", template) if suffix else template


def _template_regex(template: str) -> str:
    # Text and names of fields alternate: fields are at odd indices.
    segments = _FIELD.split(template)
    return "".join(
        (rf"(?P<{segment}>\d+)" if segment in _INDEX_FIELDS else rf"(?P<{segment}>[^.]+)")
        if index % 2
        else re.escape(segment)
        for index, segment in enumerate(segments)
    )
