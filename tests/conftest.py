"""Shared set-up: offline, seeded, one thread per worker, slow tests only on request."""

from __future__ import annotations

import base64
import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Shared and busy machines make single examples slow now and then; that is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Before any test module imports a Hugging Face library, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
"""A whole PNG file."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests that take minutes")


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; threads on top of them only get in the way
        import torch

        torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="takes minutes; run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _runs_draw_no_curves() -> Iterator[None]:
    """Drawing the curves takes more than all the rest of most of these short runs."""
    from sightbridge.training import report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "draw_panels", lambda panels: ONE_PIXEL)
        yield


@pytest.fixture
def drawn_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs do draw their curves, as they do for everybody else."""
    from sightbridge.training import charts, report

    monkeypatch.setattr(report, "draw_panels", charts.draw_panels)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Every test starts from the same random state, whichever tests ran before it."""
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
