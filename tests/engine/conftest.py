"""T3 of both backbones with random weights, for what needs no upstream."""

import pytest
from t3_pairs import random_t3


@pytest.fixture(scope="module")
def llama():
    return random_t3("tts")


@pytest.fixture(scope="module")
def gpt():
    return random_t3("turbo")
