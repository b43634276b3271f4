"""What a stranger's own test looks like."""

import pytest

from esrjax import registry
from esrjax.testing import check_method


@pytest.mark.parametrize("name", ["crumb", "loaf"])
def test_it_is_a_method(name):
    check_method(registry.method(name))
