"""What every test shares: one thread a process, fixed seeds, reproducible property tests."""

import os

# Before torch is imported anywhere: the suite runs one process a core, and more threads would only fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

settings.register_profile(
    "suite",
    deadline=None,  # the machine is shared; time limits are pytest-timeout's business
    derandomize=True,  # the same examples in every run
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")


@pytest.fixture(autouse=True)
def seeds() -> Iterator[None]:
    """Start every test from the same random state, and leave none behind."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may draw from the global state
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """A torch generator with a fixed seed, on the CPU."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]
