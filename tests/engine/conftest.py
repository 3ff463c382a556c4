"""T3 of both backbones with random weights, for tests without upstream."""

import pytest
from t3_pairs import random_t3
from token_runs import EXACT

from chatterbox_opt.executor import t3_on_device


@pytest.fixture
def interpreted(monkeypatch):
    """Triton's kernels run in its interpreter."""
    from kernel_runs import interpret

    interpret(monkeypatch)


@pytest.fixture(scope="module")
def device(request):
    """The device that computes the tokens; `token_runs.everywhere` gives others."""
    return getattr(request, "param", "cpu")


@pytest.fixture(scope="module")
def llama(device):
    return t3_on_device(random_t3("tts"), device, EXACT)


@pytest.fixture(scope="module")
def gpt(device):
    return t3_on_device(random_t3("turbo"), device, EXACT)
