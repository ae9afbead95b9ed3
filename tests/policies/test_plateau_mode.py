"""The configured plateau policy follows the mode of the metric."""

import pytest
from hydra.utils import instantiate

from lrbench_pl.runs.config import compose


@pytest.mark.parametrize(
    ("overrides", "values"),
    [
        (["monitor=val/loss", "mode=min", "target=0.1"], [2.0 - 0.1 * t for t in range(12)]),
        ([], [0.1 + 0.05 * t for t in range(12)]),
    ],
)
def test_a_metric_that_improves_is_no_plateau(overrides, values):
    policy = instantiate(compose(["lr_policy=plateau", "max_steps=100", *overrides]).lr_policy)
    for t, value in enumerate(values, 1):
        policy.observe(t, value)
    assert policy.realised() == policy.policies[2]
    for t in range(20, 25):
        policy.observe(t, values[0])
    assert policy.realised() != policy.policies[2]
