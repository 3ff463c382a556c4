"""Seams between the pieces of a text, and between watermarked chunks."""

import random

import pytest
import torch

from chatterbox_opt.audio.joins import CONTEXT, OVERLAP, PAUSE, ChunkJoiner, ChunkMarker, faded, join, places
from chatterbox_opt.audio.watermark import Watermarker

RATE = 24_000
NOTHING = torch.zeros(0)


def noise(n: int) -> torch.Tensor:
    return torch.randn(n)


def test_pieces_are_faded_around_a_pause():
    parts = [noise(2000), noise(3000), noise(10)]
    got = join(parts)
    pause = int(PAUSE * RATE)
    assert len(got) == 5010 + 2 * pause
    assert torch.equal(got[:1760], parts[0][:1760]), "nothing fades but what meets a pause"
    assert not got[2000 : 2000 + pause].any()
    assert got[1999].abs() < 0.01 * parts[0].abs().max()
    assert got[2000 + pause] == 0
    middle = slice(2000 + pause + 240, 2000 + pause + 2760)
    assert torch.equal(got[middle], parts[1][240:2760])
    assert torch.equal(join([parts[0]]), parts[0])
    assert not len(join([]))


def test_room_that_is_asked_for():
    parts = [torch.ones(2000), torch.ones(3000), torch.ones(1000)]
    before, after = [0.1, None, 0.5], 0.2
    found = places([2000, 3000, 1000], before)
    assert found == [(2400, 4400), (8000, 11_000), (23_000, 24_000)]
    got = join(parts, before, after)
    assert len(got) == 24_000 + 4800
    loud = torch.zeros(len(got), dtype=torch.bool)
    for first, end in found:
        loud[first:end] = True
        assert got[first] == 0
        assert got[end - 1] < 0.01, "every side that meets silence is faded"
        assert (got[first + 240 : end - 240] == 1).all()
    assert not got[~loud].any()


def test_fades_keep_their_input_and_the_power():
    wave = torch.ones(4000)
    both = faded(wave, start=True, end=True)
    assert torch.equal(wave, torch.ones(4000))
    assert torch.allclose(both[:240] ** 2 + both[-240:] ** 2, torch.ones(240), atol=1e-5)
    assert faded(wave) is wave
    assert len(faded(torch.ones(1), start=True)) == 1


@pytest.mark.parametrize("cuts", [[], [700], [480, 481, 50_000], list(range(900, 60_000, 900))], ids=len)
def test_marked_chunks_are_the_marked_whole_where_the_mark_is_local(cuts):
    """A mark that depends on single samples only shows no cuts."""
    wave = noise(70_000)
    marker = ChunkMarker(lambda waves: [w + 0.1 * w.abs() for w in waves])
    parts = [marker.add(w) for w in wave.tensor_split(cuts)] + [marker.rest(NOTHING)]
    assert torch.allclose(torch.cat(parts), wave + 0.1 * wave.abs())


def test_one_marking_passes_into_the_next():
    """Marks that differ by call are cross-faded, and each call gets the second before its chunk."""
    seen = []

    def mark(waves):
        seen.append(len(waves[0]))
        return [w + len(seen) for w in waves]

    marker = ChunkMarker(mark)
    parts = [marker.add(torch.zeros(n)) for n in (30_000, 10_000, 5_000)] + [marker.rest(NOTHING)]
    got = torch.cat(parts)
    assert len(got) == 45_000
    assert seen == [30_000, CONTEXT + 10_000, CONTEXT + 5_000]
    assert [len(p) for p in parts] == [30_000 - OVERLAP, 10_000, 5_000, OVERLAP]
    assert got.diff().abs().max() < 1.01 / (OVERLAP - 1)
    assert (got[0], got[35_000], got[-1]) == (1, 2, 3)


def test_without_a_mark_nothing_waits():
    wave = noise(100)
    marker = ChunkMarker(None)
    assert marker.add(wave) is wave
    assert not len(marker.rest(NOTHING))


def test_a_stream_without_a_watermark_ends_on_the_device_of_its_sound():
    """Its last chunk is joined to what the watermark held back, which is empty here."""
    joiner = ChunkJoiner(2)
    wave = torch.zeros(5000, device="meta")
    parts = [joiner.add(wave), joiner.add(wave, last=True), joiner.add(wave), joiner.add(wave[:0], last=True)]
    assert {part.device.type for part in parts} == {"meta"}
    assert sum(map(len, parts)) == 15_000 + int(PAUSE * RATE)


@pytest.mark.parametrize("seed", range(5))
def test_chunks_of_pieces_sound_as_the_pieces_joined(seed):
    chance = random.Random(seed)
    parts = [noise(chance.choice([0, 700, 5000, 9000])) for _ in range(4)]
    before = [chance.choice([None, 0.0, 0.1]) for _ in parts] if seed % 2 else None
    joiner, heard = ChunkJoiner(len(parts), before=before), [NOTHING]
    for part in parts:
        inside = range(480, len(part) - 480)  # a chunk is longer than a fade
        cut = sorted(chance.choices(inside, k=chance.randrange(3))) if inside else []
        chunks = part.tensor_split(cut)
        heard += [joiner.add(chunk, last=i == len(chunks) - 1) for i, chunk in enumerate(chunks)]
    sounding = [p for p in parts if len(p)]
    rooms = [room for p, room in zip(parts, before) if len(p)] if before else None
    assert joiner.sounding == bool(sounding)
    got, wanted = torch.cat(heard), join(sounding, rooms)
    assert [at for p, at in zip(parts, joiner.places) if len(p)] == places([len(p) for p in sounding], rooms)
    if len(parts[-1]):
        assert torch.equal(got, wanted)
    else:  # the end is faded although the piece ends in silence: that nothing follows was not known
        assert len(got) == len(wanted)
        assert torch.equal(got[:-240], wanted[:-240])


def test_of_a_long_pause_only_the_neighbourhood_of_sound_is_marked():
    """One of a minute costs as much as one of a second, and is as long as it should be."""
    seen = []

    def mark(waves):
        seen.append(len(waves[0]))
        return [w + 0.1 * w.abs() for w in waves]

    parts, before, after = [noise(5000), noise(4000), noise(3000)], [60.0, 60.0, None], 60.0
    joiner = ChunkJoiner(len(parts), mark, before, after)
    got = torch.cat([joiner.add(part, last=True) for part in parts])
    wanted = join(parts, before, after)
    assert torch.allclose(got, wanted + 0.1 * wanted.abs())
    assert joiner.places == places([len(part) for part in parts], before)
    assert max(seen) < 3 * CONTEXT


def test_a_watermark_leaves_silence_as_it_is():
    """So what of a long pause is not marked sounds as if it were."""
    wave = torch.cat([noise(RATE), torch.zeros(4 * RATE), noise(RATE)]) * 0.1
    (marked,) = Watermarker().apply([wave])
    assert not torch.equal(marked[:RATE], wave[:RATE])
    assert not marked[2 * RATE : 4 * RATE].any()


def test_what_the_marker_held_back_comes_with_the_end():
    joiner = ChunkJoiner(2, lambda waves: [w + 1 for w in waves])
    parts = [joiner.add(torch.zeros(n), last) for n, last in ((5000, False), (4000, True), (0, False), (0, True))]
    assert len(torch.cat(parts)) == 9000, "the second piece has no sound, and no pause ahead of it"
    assert len(parts[-1]) == OVERLAP
    assert (torch.cat(parts)[:8700] == 1).all()
