"""Spaces of the Gymnasium environments."""

import numpy as np
import pytest
from gymnasium.spaces import Box

from sepo_env.envs.spaces import rate_space


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5)])
def test_a_space_of_rates_stores_one_bound_and_means_what_a_box_means(shape) -> None:
    space, box = rate_space(shape), Box(0.0, float(np.finfo(np.float32).max), shape, np.float32)
    assert space == box
    assert not any(any(bound.strides) for bound in (space.low, space.high, space.bounded_below, space.bounded_above))
    assert space.low.flags.writeable  # torch warns of others, once a process
    assert space.high.flags.writeable
    space.seed(0)
    drawn = np.stack([space.sample() for _ in range(2000)])
    assert drawn.mean() == pytest.approx(1.0, abs=0.03)
    for value in (drawn[0], drawn[0] - 100, drawn[0][0], np.full(shape, np.inf, np.float32)):
        assert space.contains(value) == box.contains(value)
