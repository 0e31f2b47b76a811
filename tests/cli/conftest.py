"""The workplace of this room's tests, made once."""

from __future__ import annotations

import pytest
from cli_workplace import Workplace, run_command


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    assert run_command("train", "tiny/random", *place.overrides, "--out", place.run) == 0
    return place
