"""Fixtures of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

_SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real annotations and predictions, which lies beside the repository and is not part of it."""
    if not _SHARED_DATA.is_dir():
        pytest.skip("the folder ../shared/data is not there")
    return _SHARED_DATA.resolve()
