"""Shared by all tests: one torch thread per worker (tests run two at a time), no network, a cache of their own."""

import os
from collections.abc import Iterator

import matplotlib
import pytest
import torch

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measured widths go to a folder of this test run, never to the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECDEPTH_CACHE", str(tmp_path_factory.mktemp("recdepth_cache")))
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same state of torch's global generator."""
    torch.manual_seed(0)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two torch threads, for code that shares work among them."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
