"""Tests of a third-party package, as its author would write them."""

import pytest

from esrjax import registry
from esrjax.testing import check_loss, check_method, check_metric, check_optimizer


@pytest.mark.parametrize("name", ["crumb", "loaf"])
def test_method_passes_all_checks(name):
    check_method(registry.get_entry(name))


def test_loss_optimizer_and_metric_spec_pass_all_checks():
    check_loss("blurred_l1")
    check_optimizer("sign_sgd")
    check_metric("border1")
