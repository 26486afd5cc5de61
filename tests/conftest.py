"""What every test shares: one thread a process, fixed seeds, reproducible property tests."""

import os

# Before torch is imported anywhere: the suite runs one process a core, and more threads would only fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

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


@pytest.fixture(scope="session")
def fake_grelu() -> ModuleType:
    """The module ``tests/fake_grelu.py``, a stand-in for gReLU; ``install(monkeypatch)`` puts it in place."""
    spec = importlib.util.spec_from_file_location("fake_grelu", Path(__file__).with_name("fake_grelu.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_grelu"] = module  # its classes are pickled by that name
    spec.loader.exec_module(module)
    return module
