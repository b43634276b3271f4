"""Every installed method passes `check_method`, its reported cost included."""

import pytest

from esrjax import registry
from esrjax.method import Method
from esrjax.testing import check_method


@pytest.mark.parametrize("name", registry.names())
def test_method_passes_all_checks(name: str) -> None:
    entry = registry.get_entry(name)
    if not isinstance(entry, Method):
        pytest.skip(f"{name} is an ensemble: its members are checked")
    hparams = dict(entry.get_test_hparams())
    if "num_groups" in hparams:  # groups are alike
        hparams["num_groups"] = 1
    check_method(entry, **hparams)
