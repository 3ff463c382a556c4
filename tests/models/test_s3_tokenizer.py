"""Speech tokens: ids equal to the library's on the same weights, alone, in a batch, and beyond 30 s."""

import dataclasses

import pytest
import torch

from chatterbox_opt.config import tiny
from chatterbox_opt.models.s3_tokenizer import MEMORY, S3Tokenizer, join_windows, memory, memory_by_taps, split_windows
from chatterbox_opt.weights.keymap import S3_TOKENIZER

pytestmark = pytest.mark.kernels
CFG = dataclasses.replace(tiny("tts").s3_tokenizer, dim=128, heads=2)  # heads of 64, the published width


@pytest.fixture
def pair(upstream):
    from upstream_tiny import converted, s3_tokenizer

    theirs = s3_tokenizer(CFG).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            if p.ndim > 1:  # so that attention is not flat and the eight digits take all three values
                p.mul_(2.0)
    return converted(theirs, S3Tokenizer, CFG, S3_TOKENIZER), theirs


def mel(frames: int) -> torch.Tensor:
    return torch.randn(128, frames)


def ids_of(theirs, m: torch.Tensor) -> torch.Tensor:
    codes, lengths = theirs.quantize(m[None], torch.tensor([m.shape[1]]))
    return codes[0, : lengths[0]].long()


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 100, 399, 600])
def test_ids_are_the_librarys(pair, frames: int):
    ours, theirs = pair
    m = mel(frames)
    with torch.inference_mode():
        (mine,) = ours([m])
    assert mine.dtype == torch.long
    assert torch.equal(mine, ids_of(theirs, m))


def test_a_row_is_what_it_is_alone(pair):
    ours, theirs = pair
    rows = [mel(n) for n in (600, 97, 1000, 4)]
    with torch.inference_mode():
        together = ours(rows)
        for mine, m in zip(together, rows):
            assert torch.equal(mine, ours([m])[0])
            assert torch.equal(mine, ids_of(theirs, m))
    assert len(torch.unique(together[2])) > 20  # not one id for everything


@pytest.mark.parametrize("frames", [1, MEMORY // 2, 200])
def test_a_cpus_memory_is_the_same_filter(frames: int):
    v, weight = torch.randn(frames, 24), torch.randn(24, 1, MEMORY)
    assert torch.allclose(memory_by_taps(v, weight), memory(v, weight), atol=1e-5)


@pytest.mark.parametrize("frames", [3000, 3001, 5601, 8333])
def test_long_recordings_slide_a_window_as_the_library_does(pair, frames: int):
    ours, theirs = pair
    rows = [mel(frames), mel(120)]
    with torch.inference_mode():
        long, short = ours(rows)
    assert torch.equal(long, ids_of(theirs, rows[0]))
    assert torch.equal(short, ids_of(theirs, rows[1]))
    assert len(long) == -(-frames // 4)


def test_no_speech_is_lost_where_the_library_loses_some(pair):
    ours, theirs = pair
    m = mel(5300)  # the library's third window has only 1 s, which is part of its second
    with torch.inference_mode():
        (mine,) = ours([m])
    library = ids_of(theirs, m)
    assert (len(mine), len(library)) == (1325, 1275)
    assert torch.equal(mine[:1275], library)


@pytest.mark.parametrize("frames", [3000, 3001, 3004, 5600, 5601, 8000, 8199])
def test_windows_meet_in_the_middle_of_their_overlap(frames: int):
    numbered = torch.arange(frames).expand(1, -1)
    windows = [w[0, ::4] // 4 for w in split_windows(numbered)]
    assert all(len(w) > 100 for w in windows)
    assert torch.equal(join_windows(windows), torch.arange(-(-frames // 4)))


def test_values_reach_every_digit(pair):
    ours, _ = pair
    with torch.inference_mode():
        ids = ours([mel(1200)])[0]
    assert 0 <= int(ids.min()) <= int(ids.max()) < 6561
    digits = ids[:, None] // 3 ** torch.arange(8) % 3
    assert all(len(torch.unique(d)) == 3 for d in digits.t())
