"""A model, a script, and what was spoken of it."""

import pytest
from books import TEXT

from chatterbox_opt import OptimizedChatterboxTTS


@pytest.fixture(scope="module")
def model():
    return OptimizedChatterboxTTS.from_random(size="tiny", seed=0)


@pytest.fixture
def spoken(model, monkeypatch):
    """Returns the texts that were spoken, and not taken from an earlier run."""
    texts, speak = [], model.speak

    def listed(jobs, **how):
        texts.extend(job.text for job in jobs)
        return speak(jobs, **how)

    monkeypatch.setattr(model, "speak", listed)
    return texts


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(TEXT)
    return path
