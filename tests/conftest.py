"""What every test starts from: one thread, and random streams in a known state."""

import random

import pytest
import torch

collect_ignore_glob = ["*conftest.py"]  # the search for doctests would import two modules of one name

torch.set_num_threads(1)  # the workers of pytest-xdist share the cores, and sums keep their order


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Make a test's random numbers independent of the tests that ran before it."""
    random.seed(0)
    torch.manual_seed(0)
