"""What every test starts from: one thread, and random streams in a known state; and records for a race."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from referee import Referee

    from fallline.bench.race.store import Store

torch.set_num_threads(1)  # the workers of pytest-xdist share the cores, and sums keep their order


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Make a test's random numbers independent of the tests that ran before it."""
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def store(tmp_path: Path) -> "Iterator[Store]":
    """Empty records."""
    from fallline.bench.race.store import Store  # the library's tests import nothing of the tool

    with Store(tmp_path / "records.sqlite") as opened:
        yield opened


@pytest.fixture
def referee(store: "Store") -> "Referee":
    """Someone to hold races on those records."""
    from referee import Referee

    return Referee(store)
