"""Packages that may be missing: a test that uses a missing one is skipped, with a reason."""

import importlib
from typing import Any

import pytest


class _MissingPackage:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        pytest.skip(f"{self._name} is not installed")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return _MissingPackage(name)


torch = _import("torch")
