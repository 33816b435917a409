"""Shared by all tests: one thread a worker, no hub, and the tiny models as fixtures."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path[:1]:  # before any other package that is named `tests`
    sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402
import torch  # noqa: E402

from tests import tiny  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(params=tiny.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each of the four classes in turn."""
    return request.param


@pytest.fixture
def tiny_model():
    """`tests.tiny.tiny_model`, for tests that do not import it."""
    return tiny.tiny_model


@pytest.fixture
def tiny_batch():
    """`tests.tiny.tiny_batch`, for tests that do not import it."""
    return tiny.tiny_batch
