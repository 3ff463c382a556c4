"""Books on disk: what is spoken again and what is not; an interrupted run ends in the same bytes."""

import itertools
import json
import os
import random
import tracemalloc
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from books import CAST, LINES, SHORT, TEXT, bytes_of

from chatterbox_opt import OptimizedChatterboxMultilingualTTS, read_aloud
from chatterbox_opt.reading import book
from chatterbox_opt.reading.cast import NARRATOR, Role, cast_of
from chatterbox_opt.reading.plan import _described
from chatterbox_opt.scores import PlausibleLength
from chatterbox_opt.speech import Speech
from chatterbox_opt.text.markup import whole

MARGIN = 0.002  # s


def test_one_file_with_captions_beside_it(model, script, tmp_path):
    written = read_aloud(model, script, tmp_path / "book.flac", captions="json", **SHORT)
    assert [p.name for p in written] == ["book.flac", "book.json"]
    wav, rate = soundfile.read(written[0])
    notes = json.loads(written[1].read_text())
    assert notes["seconds"] == pytest.approx(len(wav) / rate)
    pieces = notes["pieces"]
    assert [p["text"] for p in pieces] == [
        "A title line", "Chapter 1", "One goes here.", "Two, two.", "Three.", "Four.", "Chapter 2", "Two, two."
    ]
    assert [p.get("speaker") for p in pieces][4:6] == ["Anna", "Ben"]
    assert [p["line"] for p in pieces] == [1, 3, 5, 7, 9, 10, 12, 14]
    for before, after in itertools.pairwise(pieces):
        silence = wav[before["samples"][1] : after["samples"][0]]
        assert len(silence) >= 0.4 * rate
        assert not silence.any()
    assert pieces[0]["samples"][0] == 0
    assert pieces[-1]["samples"][1] == len(wav)
    assert all(p["end"] == pytest.approx(p["samples"][1] / rate, abs=1e-5) for p in pieces)


def test_a_file_for_each_chapter(model, script, tmp_path, spoken):
    whole = read_aloud(model, script, tmp_path / "book.wav", **SHORT)
    assert len(spoken) == LINES
    written = read_aloud(model, script, tmp_path / "book.wav", chapters=True, captions="srt", **SHORT)
    assert [p.name for p in written] == ["book-01.wav", "book-01.srt", "book-02.wav", "book-02.srt"]
    assert len(spoken) == LINES, "the sound is there"
    assert written[3].read_text().startswith("1\n00:00:00,000 --> ")
    total = sum(soundfile.info(p).frames for p in written[::2])
    assert soundfile.info(whole[0]).frames == total + round(24_000 * 1.0), "the silence ahead of a chapter's heading"


def test_a_paragraph_that_changed_alone_is_spoken_again(model, script, tmp_path, spoken):
    out = tmp_path / "book.wav"
    first = bytes_of(read_aloud(model, script, out, **SHORT))
    assert bytes_of(read_aloud(model, script, out, **SHORT)) == first
    assert len(spoken) == LINES
    script.write_text(TEXT.replace("One goes here.", "One went there.").replace("Chapter 1\n", "\n"))
    read_aloud(model, script, out, **SHORT)
    assert spoken[LINES:] == ["One went there."]
    read_aloud(model, script, out, **SHORT | {"cast": {"Ben": CAST["Ben"], "Anna": Role(seed=6)}})
    assert spoken[LINES + 1 :] == ["Three."], "only who speaks otherwise"
    read_aloud(model, script, out, **SHORT | {"seed": 1})
    assert len(spoken) == LINES + 2 + (LINES - 1), "another seed for all"
    kept = list((tmp_path / "book.wav.work").glob("*.flac"))
    assert len(kept) == LINES - 1, "what no line needs any more is gone"


@pytest.mark.parametrize(
    "changed",
    [dict(takes=2), dict(retries=1), dict(spoken=True), dict(takes=2, score=PlausibleLength(20.0)), dict(max_chars=60)],
)
def test_a_changed_option_speaks_again(model, script, tmp_path, spoken, changed):
    if "spoken" in changed:
        pytest.importorskip("wetext", reason="wetext is not installed: pip install 'chatterbox-opt[text]'")
    out = tmp_path / "book.wav"
    read_aloud(model, script, out, takes=1, retries=0, spoken=False, pronounce={}, **SHORT)
    read_aloud(model, script, out, **SHORT)
    assert len(spoken) == LINES, "what changes nothing is no change"
    read_aloud(model, script, out, **SHORT, **changed)
    assert len(spoken) == 2 * LINES
    read_aloud(model, script, out, **SHORT, **changed)
    assert len(spoken) == 2 * LINES


@pytest.fixture
def read(model, monkeypatch):
    """Returns the texts that were spoken, as the model read them."""
    texts, speak = [], model.speak

    def listed(jobs, **how):
        for job in jobs:
            for part in job.segments or whole(job.text):
                said = job.text[slice(*part.body)]
                texts.append(job.reading.steps(part.language, part.voice)(said) if job.reading else said)
        return speak(jobs, **how)

    monkeypatch.setattr(model, "speak", listed)
    return texts


def test_a_new_respelling_speaks_again_what_it_concerns(model, script, tmp_path, read):
    out = tmp_path / "book.wav"
    read_aloud(model, script, out, **SHORT)
    read.clear()
    read_aloud(model, script, out, pronounce={"goes": "went", "elsewhere": "nowhere"}, **SHORT)
    assert read == ["One went here."]
    read.clear()
    (tmp_path / "names.toml").write_text('[words]\nthree = "drei"\n[voice.Ben.words]\nfour = "vier"\nthree = "tri"\n')
    read_aloud(model, script, out, pronounce=tmp_path / "names.toml", **SHORT)
    assert read == ["One goes here.", "Drei.", "Vier."], "and what it concerned before"
    read.clear()
    cast = CAST | {"Anna": Role(seed=5, options={"pronounce": {"Three": "Four"}})}
    read_aloud(model, script, out, pronounce=tmp_path / "names.toml", **SHORT | {"cast": cast})
    assert read == ["Four."], "a role's own"


def test_a_role_is_respelt_by_its_name_and_by_its_recording(model, tmp_path, read):
    for name in ("low", "Ben"):
        model.conds.save(tmp_path / f"{name}.pt")
    (tmp_path / "names.toml").write_text(
        '[words]\nowl = "aul"\n[voice.Anna.words]\ncat = "kat"\nowl = "oul"\n'
        '[voice.low.words]\ndog = "dawg"\ncat = "cad"\n[voice.Ben.words]\nhen = "ben"\n'
    )
    (tmp_path / "a.txt").write_text("Anna: A cat, dog, owl, hen.\nCarl: A cat, dog, owl, hen.\nA cat.")
    cast = {"Anna": Role(voice=tmp_path / "low.pt"), "Carl": Role(voice=tmp_path / "Ben.pt")}
    how = dict(pronounce=tmp_path / "names.toml", kind="dialogue", max_new_tokens=12)
    read_aloud(model, tmp_path / "a.txt", tmp_path / "a.wav", cast=cast, **how)
    assert read == ["A kat, dawg, oul, hen.", "A cat, dog, aul, ben. A cat."]
    read.clear()
    (tmp_path / "a.txt").write_text("Carl: Hens. [voice Anna] A cat, dog. [voice] A dog.")
    read_aloud(model, tmp_path / "a.txt", tmp_path / "b.wav", cast=cast, markup=True, **how)
    assert read == ["Hens.", "A kat, dawg.", "A dog."], "the same by a mark"
    read.clear()
    names = (tmp_path / "names.toml").read_text().replace("dawg", "dorg")
    (tmp_path / "names.toml").write_text(names)
    read_aloud(model, tmp_path / "a.txt", tmp_path / "b.wav", cast=cast, markup=True, **how)
    assert "A kat, dorg." in read, "a mark's respelling counts for what is kept"


def test_a_role_is_spoken_in_takes_of_its_own(model, script, tmp_path):
    cast = {"Anna": Role(options={"takes": 3}), "Ben": Role(options={"retries": 2})}

    def pieces(name, sign):
        asked = itertools.count(1)
        out = tmp_path / f"{name}.wav"
        how = dict(captions="json", max_new_tokens=12, cast=cast, score=lambda take: sign * next(asked))
        _, notes = read_aloud(model, script, out, **how)
        return {p["text"]: p for p in json.loads(notes.read_text())["pieces"]}

    last, first = pieces("last", 1), pieces("first", -1)
    assert "seed" not in last["Chapter 1"]
    assert last["Three."]["tries"] == last["Four."]["tries"] == 1
    assert last["Three."]["seed"] == first["Three."]["seed"] + 2
    assert last["Four."]["seed"] == first["Four."]["seed"]


def test_a_score_needs_takes(model, script, tmp_path):
    with pytest.raises(ValueError, match="chooses among takes"):
        read_aloud(model, script, tmp_path / "a.wav", score=PlausibleLength(), **SHORT)
    with pytest.raises(ValueError, match="takes=0"):
        read_aloud(model, script, tmp_path / "a.wav", **SHORT | {"cast": {"Anna": Role(options={"takes": 0})}})


class Shortest:
    def __call__(self, take, sign=1):
        return 0.0


@dataclass
class Holding:
    score: Any


@pytest.mark.parametrize(
    "make",
    [
        Shortest, lambda: partial(Shortest(), sign=-1), lambda: partial(PlausibleLength(20.0), 1),
        lambda: Holding(Shortest()), lambda: partial(longest_silence),
    ],
)
def test_a_score_is_described_without_its_address(make):
    """Another object stands for that of another process."""
    one, other = make(), make()
    assert one is not other
    assert _described({"score": one}) == _described({"score": other})
    assert "0x" not in _described({"score": one})["score"]


def test_other_arguments_of_a_partial_are_another_score():
    made = [partial(Shortest(), sign=1), partial(Shortest(), sign=-1), partial(Shortest(), 1), Shortest()]
    assert len({_described({"score": each})["score"] for each in made}) == len(made)


def test_a_score_that_is_an_object_continues_the_book(model, script, tmp_path, spoken):
    for _ in range(2):
        read_aloud(model, script, tmp_path / "a.wav", takes=2, score=Shortest(), **SHORT)
    assert len(spoken) == LINES


def test_the_narrator_of_a_cast_has_lines_of_its_own(model, tmp_path, spoken, caplog):
    script = tmp_path / "a.txt"
    script.write_text("narrator: It was cold.\nAnna: Hi.")
    cast = {NARRATOR: Role(seed=7), "Anna": Role()}
    read_aloud(model, script, tmp_path / "a.wav", kind="dialogue", cast=cast, max_new_tokens=12)
    assert spoken == ["It was cold.", "Hi."]
    assert "narrator" not in caplog.text
    with pytest.raises(ValueError, match="line 2: nobody is called 'Anna'; the cast has narrator"):
        read_aloud(model, script, tmp_path / "a.wav", kind="dialogue", cast={NARRATOR: Role(seed=7)})
    lone = cast_of(None)
    lone[NARRATOR] = Role(seed=7)  # as by --voice
    read_aloud(model, script, tmp_path / "a.wav", kind="dialogue", cast=lone, max_new_tokens=12)
    read_aloud(model, script, tmp_path / "a.wav", cast={"Narrator": Role()}, max_new_tokens=12)
    assert "the cast has 'Narrator', but lines without a name belong to 'narrator'" in caplog.text


def test_a_name_that_no_line_can_have_is_told(model, script, tmp_path, spoken):
    with pytest.raises(ValueError, match="no line can begin with the name 'Anna & Ben'"):
        read_aloud(model, script, tmp_path / "a.wav", cast={"Anna & Ben": Role()})
    assert not spoken


def test_a_symbolic_link_stays(model, script, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    for kind in ("wav", "srt"):
        (tmp_path / f"a.{kind}").symlink_to(there / f"b.{kind}")
    written = read_aloud(model, script, tmp_path / "a.wav", captions="srt", **SHORT)
    assert [p.name for p in written] == ["a.wav", "a.srt"]
    assert all(p.is_symlink() for p in written)
    assert sorted(p.name for p in there.iterdir()) == ["b.srt", "b.wav"]
    assert soundfile.info(there / "b.wav").frames > 0
    (tmp_path / "c.wav").symlink_to(tmp_path / "none" / "c.wav")
    with pytest.raises(ValueError, match=r"there is no folder .*none"):
        read_aloud(model, script, tmp_path / "c.wav", **SHORT)


def test_the_same_words_twice_are_said_anew(model, tmp_path):
    (tmp_path / "a.txt").write_text("Yes, yes.\n\nYes, yes.")
    (out,) = read_aloud(model, tmp_path / "a.txt", tmp_path / "a.wav", max_new_tokens=12)
    wav, _ = soundfile.read(out)
    silence = round(0.6 * 24_000)
    half = (len(wav) - silence) // 2
    assert not np.array_equal(wav[:half], wav[-half:])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("seed", range(6))
def test_a_run_that_is_killed_anywhere_goes_on_to_the_same_bytes(model, script, tmp_path, monkeypatch, seed):
    """Killed before a file appears, or in the middle of a line: only what is then in the folder is left."""
    wanted = bytes_of(read_aloud(model, script, tmp_path / "whole.wav", captions="vtt", **SHORT))
    chance, left = random.Random(seed), [0]

    def dying(call):
        def tried(*args, **how):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return call(*args, **how)

        return tried

    monkeypatch.setattr(os, "replace", dying(os.replace))
    monkeypatch.setattr(model, "speak", dying(model.speak))
    monkeypatch.setattr(book.SoundWriter, "add", dying(book.SoundWriter.add))
    ended = 0
    while True:
        left[0] = chance.randrange(1, 30)
        try:
            got = read_aloud(model, script, tmp_path / "cut.wav", captions="vtt", **SHORT)
            break
        except Killed:
            ended += 1
    left[0] = 0
    assert ended
    assert bytes_of(got) == wanted
    assert not list((tmp_path / "cut.wav.work").glob("*half*"))


def test_progress_counts_what_earlier_runs_left(model, script, tmp_path):
    heard = []
    read_aloud(model, script, tmp_path / "a.wav", progress=lambda *at: heard.append(at), **SHORT)
    total = sum(len(t) for t in ("A title line", "Chapter 1", "Chapter 2", "One goes here.", "Three.", "Four.")) + 18
    assert heard[0] == (0, 0, total)
    assert heard[-1] == (total, 0, total)
    heard.clear()
    read_aloud(model, script, tmp_path / "a.wav", progress=lambda *at: heard.append(at), **SHORT)
    assert set(heard) == {(0, total, total)}


def test_words_are_timed_on_what_is_kept(model, script, tmp_path, spoken):
    def halves(wave, rate, text):
        seconds = len(wave) / rate
        return [(word, i * seconds / 2, (i + 1) * seconds / 2) for i, word in enumerate(text.split()[:2])]

    out = tmp_path / "book.wav"
    read_aloud(model, script, out, captions="json", **SHORT)
    read_aloud(model, script, out, captions="json", align=halves, **SHORT)
    assert len(spoken) == LINES
    pieces = json.loads(out.with_suffix(".json").read_text())["pieces"]
    for piece in pieces:
        assert piece["words"][0]["start"] == pytest.approx(piece["start"], abs=MARGIN)
        assert piece["words"][-1]["end"] <= piece["end"] + MARGIN


def test_times_of_words_are_those_of_this_runs_aligner(model, script, tmp_path, spoken):
    def early(wave, rate, text):
        return [(text, 0.0, 0.1)]

    def late(wave, rate, text):
        return [(text, 0.1, 0.2)]

    def starts(align):
        _, notes = read_aloud(model, script, tmp_path / "book.wav", captions="json", align=align, **SHORT)
        pieces = json.loads(notes.read_text())["pieces"]
        assert not any("aligner" in piece for piece in pieces)
        return {round(w["start"] - piece["start"], 3) for piece in pieces for w in piece.get("words", [])}

    assert [starts(align) for align in (early, None, late)] == [{0.0}, set(), {0.1}]
    assert len(spoken) == LINES


def test_files_of_chapters_that_are_gone_are_named_and_left(model, script, tmp_path, caplog):
    (tmp_path / "book-notes.wav").write_text("mine")
    read_aloud(model, script, tmp_path / "book.wav", chapters=True, **SHORT)
    assert "earlier run" not in caplog.text
    script.write_text("Chapter 1\n\nOne goes here.")
    read_aloud(model, script, tmp_path / "book.wav", chapters=True, **SHORT)
    assert "no chapter of this script, perhaps of an earlier run: book-02.wav" in caplog.text
    assert (tmp_path / "book-02.wav").is_file()


def test_marks_of_a_script(model, tmp_path, spoken):
    script = tmp_path / "a.txt"
    script.write_text("First. [pause 2s] Second.\n\nThird [shout].")
    with pytest.raises(ValueError, match=r"paragraph at line 3: line 1, column 7: \[shout\] is unknown"):
        read_aloud(model, script, tmp_path / "a.wav", markup=True, **SHORT)
    assert not spoken, "told ahead of the first sound"
    script.write_text("First. [pause 2s] Second.")
    (out,) = read_aloud(model, script, tmp_path / "a.wav", markup=True, **SHORT)
    wav, rate = soundfile.read(out)
    assert longest_silence(wav) == pytest.approx(2 * rate, abs=rate * 0.1), "a watermark reaches into it"


def test_a_paragraph_of_pauses_is_heard(model, tmp_path, spoken):
    (tmp_path / "a.txt").write_text("Hello.\n\n[pause 2s]\n\nBye.\n\n[pause 3s]")
    (out,) = read_aloud(model, tmp_path / "a.txt", tmp_path / "a.wav", markup=True, max_new_tokens=12)
    assert spoken == ["Hello.", "Bye."]
    wav, rate = soundfile.read(out)
    assert longest_silence(wav) == pytest.approx(2 * rate, abs=rate * 0.1)


def test_a_mark_may_name_whoever_is_in_the_cast(model, tmp_path):
    """Also one without a recording, who speaks in the model's own voice."""
    (tmp_path / "a.txt").write_text("Good. [voice Anna] Good. [voice] Good.")
    (tmp_path / "cast.toml").write_text("[Anna]\ntemperature = 0.9\n")
    (out,) = read_aloud(model, tmp_path / "a.txt", tmp_path / "a.wav", cast=tmp_path / "cast.toml", markup=True)
    assert soundfile.info(out).duration > 0.5
    (tmp_path / "a.txt").write_text("Good. [voice Ann] Good.")
    with pytest.raises(ValueError, match="there is no voice 'Ann'; known: Anna"):
        read_aloud(model, tmp_path / "a.txt", tmp_path / "b.wav", cast=tmp_path / "cast.toml", markup=True)


def longest_silence(wav: np.ndarray) -> int:
    loud = np.flatnonzero(np.concatenate([[1], wav, [1]]))
    return int(np.diff(loud).max()) - 1


def test_a_line_of_which_nothing_is_heard_is_tried_again_and_then_told(model, tmp_path, monkeypatch):
    seeds, quiet = [], Speech(torch.zeros(1, 0), [], [])
    monkeypatch.setattr(model, "speak", lambda jobs, **_: seeds.append(jobs[0].seed) or [quiet])
    (tmp_path / "a.txt").write_text("\n\nHello.")
    with pytest.raises(ValueError, match=r"line 3: nothing is heard of 'Hello\.'"):
        read_aloud(model, tmp_path / "a.txt", tmp_path / "a.wav")
    assert len(set(seeds)) == book.TRIES


@pytest.mark.parametrize(
    ("name", "how", "told"),
    [
        ("a.docx", {}, "ends in .wav"),
        ("no/a.wav", {}, "there is no folder"),
        ("a.wav", dict(captions="sub"), "one of srt, vtt, json"),
        ("a.wav", dict(captions=".srt"), "one of srt, vtt, json"),
        ("a.wav", dict(captions="SRT"), "one of srt, vtt, json"),
        ("a.wav", dict(kind="epub"), "one of text, markdown, dialogue"),
        ("a.wav", dict(temperature=-1), "temperature"),
        ("a.wav", dict(loudness=3), "LUFS"),
        ("a.wav", dict(pitch=2), "unknown argument pitch"),
    ],
)
def test_what_is_wrong_is_told_ahead_of_the_first_sound(model, script, tmp_path, spoken, name, how, told):
    with pytest.raises((ValueError, TypeError), match=told):
        read_aloud(model, script, tmp_path / name, **how)
    assert not spoken


def test_a_language_that_no_library_reads_out_is_told_ahead_of_the_first_sound(tmp_path, monkeypatch):
    pytest.importorskip("wetext", reason="wetext is not installed: pip install 'chatterbox-opt[text]'")
    model = OptimizedChatterboxMultilingualTTS.from_random(size="tiny", seed=0, enable_watermark=False)
    monkeypatch.setattr(model, "speak", None)
    (tmp_path / "a.txt").write_text("Hello.\n\nHello. [lang sw] Jambo.")
    how = dict(spoken="wetext", markup=True, language_ids="en")
    with pytest.raises(ValueError, match=r"paragraph at line 3: .* no library here reads 'sw' out"):
        read_aloud(model, tmp_path / "a.txt", tmp_path / "a.wav", **how)


def test_a_script_that_is_no_text_is_named(model, tmp_path):
    (tmp_path / "a.txt").write_bytes("Grüße.".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt: it is not UTF-8 .*; save it as UTF-8"):
        read_aloud(model, tmp_path / "a.txt", tmp_path / "a.wav")


def test_memory_stays_flat_over_an_hour_of_speech(model, tmp_path, monkeypatch):
    """Half a minute per line, with cheap samples."""
    minute = 30 * 24_000
    piece = dict(text="x", chars=[0, 1], samples=[0, minute], start=0.0, end=30.0, tokens=1, stop="eos")

    class Long(Speech):
        def records(self):
            return [piece]

    monkeypatch.setattr(model, "speak", lambda jobs, **_: [Long(torch.zeros(1, minute), [], [])])
    script, peaks = tmp_path / "a.txt", []
    for count in (4, 120):
        script.write_text("\n\n".join(f"Line {i}." for i in range(count)))
        tracemalloc.start()
        (out,) = read_aloud(model, script, tmp_path / f"{count}.flac")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert soundfile.info(out).duration > 3600
    assert peaks[1] < peaks[0] + 2_000_000, "bytes"
