"""Schedules against finite differences, their own inverses and published closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sepo_env.diffusion.schedule import SCHEDULES, Cosine, Geometric, Linear, LogLinear, make_schedule
from sepo_env.errors import InvalidArgumentError, UnknownNameError

ALL = [make_schedule(name) for name in SCHEDULES]
TIMES = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_alpha_decreases_from_one_to_nearly_zero(schedule):
    alpha = schedule.alpha(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert alpha[0] == pytest.approx(1.0, abs=2e-4)
    assert 0.0 < alpha[-1] <= 1.01e-3
    assert (alpha.diff() < 0).all()


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_sigma_prime_is_the_derivative_of_sigma(schedule):
    t = TIMES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(schedule.sigma(t).sum(), t)
    torch.testing.assert_close(schedule.sigma_prime(TIMES), gradient, rtol=1e-10, atol=0)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_inverses_give_the_time_back(schedule):
    torch.testing.assert_close(schedule.inverse_sigma(schedule.sigma(TIMES)), TIMES, rtol=1e-9, atol=1e-12)
    late = TIMES[TIMES < 0.9]  # geometric noise leaves no signal that float64 could invert beyond
    torch.testing.assert_close(schedule.inverse_alpha(schedule.alpha(late)), late, rtol=1e-6, atol=1e-9)
    clock = schedule.log_one_minus_alpha(late)
    torch.testing.assert_close(schedule.inverse_log_one_minus_alpha(clock), late, rtol=1e-6, atol=1e-9)


@given(st.floats(1e-4, 0.5), st.floats(0.01, 0.99))
def test_log_linear_masks_a_share_linear_in_time(eps, t):
    alpha = LogLinear(eps).alpha(torch.tensor(t, dtype=torch.float64))
    assert 1.0 - alpha == pytest.approx((1.0 - eps) * t, rel=1e-9)


def test_closed_forms_at_half_time():
    half = torch.tensor(0.5, dtype=torch.float64)
    assert Cosine(1e-3).alpha(half) == pytest.approx(1.0 - 0.999 * math.sin(math.pi / 4))
    assert Geometric(1e-4, 20.0).sigma(half) == pytest.approx(math.sqrt(1e-4 * 20.0))
    assert Linear(0.0, 10.0).sigma(half) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: LogLinear(0.0), "^eps is 0.0"),
        (lambda: Cosine(1.5), "^eps is 1.5"),
        (lambda: Cosine("0.1"), "^eps is '0.1'"),
        (lambda: LogLinear(math.nan), "^eps is nan"),
        (lambda: Geometric(2.0, 1.0), "grows from sigma_min to sigma_max"),
        (lambda: Geometric(0.0, 1.0), "^sigma_min is 0.0"),
        (lambda: Linear(-1.0, 1.0), "^sigma_min is -1.0"),
        (lambda: Linear(1, 1), "grows from sigma_min to sigma_max"),
        (lambda: Linear(0, math.inf), "^sigma_max is inf"),
    ],
)
def test_impossible_settings_are_refused(build, words):
    with pytest.raises(InvalidArgumentError, match=words):
        build()


def test_whole_numbers_are_numbers():
    assert Linear(0, np.float32(10)) == Linear()
    assert type(Linear(0, 10).sigma_max) is float


def test_names():
    assert make_schedule("log-linear") == LogLinear()
    assert make_schedule(Cosine(0.01)) == Cosine(0.01)
    with pytest.raises(UnknownNameError, match="did you mean 'geometric'"):
        make_schedule("geometrik")
