"""What the tests of the denoisers share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def fixtures(project_root: Path) -> Path:
    """Tiny checkpoints in the published layouts, with the numbers that the published code computes from them."""
    return project_root / "tests" / "fixtures"
