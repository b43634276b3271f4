"""Every installed method keeps the laws, and every reported figure is the counted one."""

import pytest

from esrjax import registry
from esrjax.method import Method
from esrjax.testing import check_method


@pytest.mark.parametrize("name", registry.names())
def test_it_keeps_the_laws(name: str) -> None:
    method = registry.method(name)
    if not isinstance(method, Method):
        pytest.skip(f"{name} is an ensemble: its members are asked")
    check_method(method)
