"""An empty bank."""

from pathlib import Path

import pytest

from megart.bank import Bank


@pytest.fixture
def bank(tmp_path: Path, model: Path):
    with Bank.create(tmp_path / "bank", model) as made:
        made._catalog.connection.execute("PRAGMA synchronous = OFF")  # the tests' time, not a claim
        yield made
