"""Tests of a third-party package, as its author would write them."""

import pytest

from esrjax import registry
from esrjax.testing import check_method


@pytest.mark.parametrize("name", ["crumb", "loaf"])
def test_method_passes_all_checks(name):
    check_method(registry.get_entry(name))
