"""What the tests of the race share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from referee import Referee

from fallline.bench.record import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Empty records."""
    with Store(tmp_path / "records.sqlite") as opened:
        yield opened


@pytest.fixture
def referee(store: Store) -> Referee:
    """Someone to hold races on those records."""
    return Referee(store)
