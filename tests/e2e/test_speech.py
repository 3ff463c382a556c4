"""The English model's public calls, at tiny size with random weights."""

import dataclasses
import gc
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from threads import in_threads

from chatterbox_opt import Conditionals, OptimizedChatterboxTTS, OptimizedChatterboxVC
from chatterbox_opt.voiced import MissingVoice


@pytest.fixture(scope="module")
def model():
    return OptimizedChatterboxTTS.from_random(size="tiny", seed=0)


def test_generate_returns_cpu_float32_and_repeats_with_a_seed(model):
    first = model.generate("Hello there.", seed=1, max_new_tokens=12)
    assert first.dtype == torch.float32
    assert first.device.type == "cpu"
    assert first.ndim == 2
    assert first.shape[0] == 1
    assert torch.isfinite(first).all()
    assert first.abs().max() <= 1.05, "the watermark comes on top of what the vocoder limits to 0.99"
    assert torch.equal(first, model.generate("Hello there.", seed=1, max_new_tokens=12))
    assert not torch.equal(first, model.generate("Hello there.", seed=2, max_new_tokens=12))


def test_a_seed_is_torch_manual_seed(model):
    seeded = model.generate("Hello there.", seed=5, max_new_tokens=12)
    torch.manual_seed(5)
    assert torch.equal(seeded, model.generate("Hello there.", max_new_tokens=12))


@pytest.mark.kernels
def test_a_row_is_what_it_is_alone(model):
    texts = ["Hello there.", "A rather longer sentence, with a comma.", "No."]
    how = dict(cfg_weight=[0.5, 0.0, 0.3], exaggeration=[0.5, 0.7, 0.2], temperature=[0.8, 1.0, 0.5])
    together = model.speak(model.jobs(texts, seeds=[1, 2, 3], max_new_tokens=16, **how))
    for i, text in enumerate(texts):
        alone = model.speak(model.jobs([text], seeds=i + 1, max_new_tokens=16, **{k: v[i] for k, v in how.items()}))[0]
        assert torch.equal(together[i].tokens[0], alone.tokens[0])
        assert together[i].wav.shape == alone.wav.shape
        assert (together[i].wav - alone.wav).abs().max() < 1e-3


def test_generate_batch_is_a_list_of_waves(model):
    wavs = model.generate_batch(["One.", "Two."], seeds=[1, 2], max_new_tokens=8)
    assert [w.ndim for w in wavs] == [2, 2]
    assert model.generate_batch([]) == []
    with pytest.raises(ValueError, match="list of texts"):
        model.generate_batch("One.")
    with pytest.raises(ValueError, match="3 values for 2 texts"):
        model.generate_batch(["One.", "Two."], seeds=[1, 2, 3])
    with pytest.raises(TypeError, match=r"unknown argument pitch; known are voice, .* max_new_tokens, .* seed"):
        model.generate_batch(["One."], pitch=2)
    with pytest.raises(TypeError, match="max_chars is an argument of other methods, not of this one"):
        model.jobs(["One."], max_chars=100)
    with pytest.raises(TypeError, match=r"unknown argument sedes; did you mean seeds\?"):
        model.generate_batch(["One."], sedes=2)
    with pytest.raises(TypeError, match=r"unknown argument frist_chunk; did you mean first_chunk\?"):
        model.submit("One.", frist_chunk=1)


def test_an_argument_of_another_method_is_told_from_an_unknown_one(model):
    with pytest.raises(TypeError, match=r"takes is for whole speech: generate\(\)"):
        model.generate_stream("One.", takes=2)
    with pytest.raises(TypeError, match=r"norm_loudness .* prepare_voice\(\)"):
        model.generate_batch(["One."], norm_loudness=False)
    for texts in (["One."], "One.", model.jobs(["One."])[0]):
        with pytest.raises(TypeError, match=r"jobs\(texts\) makes them"):
            model.speak(texts)


@pytest.mark.parametrize("how", [dict(markup=True), dict(breath=True), dict(loudness=-20.0)], ids=str)
def test_what_is_of_sound_is_refused_where_tokens_are_asked_for(model, how):
    with pytest.raises(ValueError, match="are of sound"):
        model.generate_tokens("One. [pause 1s] Two.", **how)


def test_long_text_is_spoken_in_pieces(model):
    text = " ".join(f"This is sentence number {i} of a text that goes on." for i in range(12))
    (speech,) = model.speak(model.jobs([text], seeds=1, max_new_tokens=6))
    assert len(speech.tokens) == len(speech.stops) > 1
    assert speech.wav.shape[1] > sum(len(t) for t in speech.tokens) * 960  # the pauses
    (whole,) = model.speak(model.jobs([text], seeds=1, max_new_tokens=6), max_chars=None)
    assert len(whole.tokens) == 1


def test_a_model_of_short_breath_gets_shorter_pieces():
    model = OptimizedChatterboxTTS.from_random(size="tiny", seed=0)
    model.pipeline.config = dataclasses.replace(model.pipeline.config, max_chars=60)
    text = "This sentence would fit well into a single piece of speech. So would this one behind it, as a rule."
    for asked, pieces in ((280, 2), (40, 3), (None, 1)):
        (speech,) = model.speak(model.jobs([text], seeds=1, max_new_tokens=6), max_chars=asked)
        assert len(speech.stops) == pieces


def test_cutting_is_said_aloud(model, caplog):
    with caplog.at_level(logging.WARNING):
        (speech,) = model.speak(model.jobs(["Hello there."], seeds=1, max_new_tokens=5))
    assert speech.stops in (["limit"], ["eos"])
    assert ("max_new_tokens=5" in caplog.text) == (speech.stops == ["limit"])


@pytest.mark.parametrize("text", ["", "   \n\t", "🙂🙂", "\x00\x07", "!?", "x"])
def test_odd_texts_speak(model, text):
    (speech,) = model.speak(model.jobs([text], seeds=1, max_new_tokens=6))
    assert torch.isfinite(speech.wav).all()


@pytest.mark.parametrize(
    "bad",
    [
        dict(temperature=-1), dict(temperature=float("nan")), dict(top_p=-0.1), dict(top_p=1.5), dict(min_p=-0.1),
        dict(min_p=2), dict(cfg_weight=-0.5), dict(repetition_penalty=0), dict(exaggeration=float("nan")),
        dict(max_new_tokens=0), dict(n_cfm_timesteps=0), dict(seed="x"), dict(temperature="hot"),
        dict(temperature=False), dict(temperature=1e-50), dict(temperature=10**400), dict(cfg_weight=4e38),
        dict(repetition_penalty=1e300), dict(repetition_penalty=1e-300),
    ],
    ids=str,
)
def test_bad_arguments_name_what_was_given(model, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        model.generate("Hello.", **bad)
    assert model.generate("Hello.", seed=1, max_new_tokens=4).shape[1] > 0


@pytest.mark.parametrize("most", [dict(temperature=1e-6, cfg_weight=1e3), dict(temperature=1e3)], ids=str)
@pytest.mark.parametrize("penalty", [1e-3, 1e3])
def test_the_largest_and_smallest_numbers_speak(model, most, penalty):
    how = dict(repetition_penalty=penalty, top_k=2**31 - 1, max_new_tokens=20, **most)
    (wav,) = model.generate_batch(["Hello."], seeds=1, **how)
    assert wav.shape[1] > 0
    assert wav.isfinite().all()
    with pytest.raises(ValueError, match="top_k=2147483648: a whole number from 0 to 2147483647"):
        model.generate_batch(["Hello."], top_k=2**31)


def test_numbers_may_be_numpys(model):
    how = dict(seed=np.int64(1), temperature=np.float32(0.5), exaggeration=np.float32(0.5), max_new_tokens=np.int32(4))
    assert torch.equal(model.generate("Hello.", **how), model.generate("Hello.", seed=1, temperature=0.5,
                                                                       max_new_tokens=4))


def test_the_largest_seed_has_room_for_pieces(model):
    text = "One sentence that goes on for a while. And a second one of the same kind."
    (speech,) = model.speak(model.jobs([text], seeds=2**64 - 1, max_new_tokens=4), max_chars=40)
    assert len(speech.stops) == 2


def test_top_p_of_nothing_is_greedy(model):
    a, b = (model.generate_tokens("Hello.", seed=s, top_p=0, max_new_tokens=8) for s in (1, 2))
    assert torch.equal(a, b)


def test_text_must_be_text(model):
    with pytest.raises(ValueError, match="a string is needed"):
        model.generate(None)
    with pytest.raises(ValueError, match="generate_batch"):
        model.generate(["Hello."])


@pytest.mark.parametrize(("given", "said"), [("seed", "seeds"), ("audio_prompt_path", "voices"), ("voice", "voices")])
def test_a_batch_says_what_its_arguments_are_called(model, given, said):
    with pytest.raises(TypeError, match=f"{given}: .*{said}="):
        model.generate_batch(["Hello."], **{given: 1})


def test_what_comes_out_is_the_callers(model):
    """Not inference tensors, which could be neither written into nor trained on."""
    wav = model.generate("Hello.", seed=1, max_new_tokens=4)
    wav *= 0.5
    tokens = model.generate_tokens("Hello.", seed=1, max_new_tokens=4)
    tokens += 0
    speech = model.speak(model.jobs(["Hello."], seeds=1, max_new_tokens=4))[0]
    converter = OptimizedChatterboxVC.from_random(size="tiny")
    converted = converter.generate(np.zeros(16_000, dtype=np.float32), sample_rate=16_000, seed=1)
    for out in (wav, tokens, speech.wav, *speech.tokens, model.tokens_to_wav(tokens, seed=1), converted):
        assert not out.is_inference()


def test_text_longer_than_the_position_table(model):
    with pytest.raises(ValueError, match=r"2048|2050|position"):
        model.generate("word " * 3000, max_chars=None, max_new_tokens=4)


def test_unknown_devices():
    for device in ("abacus", "cuda:99", 3.5):
        with pytest.raises(ValueError, match="device"):
            OptimizedChatterboxTTS.from_random(device=device)


def test_tokens_and_back(model):
    tokens = model.generate_tokens("Hello there.", seed=3, max_new_tokens=10)
    assert tokens.dtype == torch.long
    assert tokens.ndim == 1
    assert int(tokens.max()) < 6561
    assert model.tokens_to_wav(tokens, seed=3).shape == (1, 960 * len(tokens))
    for wrong in ([6561], [-1], []):
        with pytest.raises(ValueError, match="speech tokens"):
            model.tokens_to_wav(torch.tensor(wrong))
    assert model.tokens_to_wav([5], seed=1).shape == (1, 960)


def test_greedy_needs_no_seed(model):
    draw = [model.generate_tokens("Hello there.", temperature=0, max_new_tokens=10) for _ in range(2)]
    assert torch.equal(*draw)


@pytest.mark.kernels
def test_threads_give_what_one_after_another_gives(model):
    texts = [f"This is line {i}." for i in range(8)]
    apart = [model.generate(t, seed=i, exaggeration=0.1 * i, max_new_tokens=8) for i, t in enumerate(texts)]

    def speak(i: int) -> torch.Tensor:
        return model.generate(texts[i], seed=i, exaggeration=0.1 * i, max_new_tokens=8)

    got = in_threads(*(partial(speak, i) for i in range(8)))
    assert all(map(torch.equal, apart, got))


def test_voices_are_never_changed(model, tmp_path):
    rng = np.random.default_rng(0)
    sound = 0.1 * rng.standard_normal(24_000 * 6).astype(np.float32)
    soundfile.write(tmp_path / "ref.wav", sound, 24_000)
    voice = model.prepare_voice(tmp_path / "ref.wav")
    before = {k: v.clone() for k, v in voice.gen.items() if torch.is_tensor(v)} | {"e": voice.t3.emotion_adv.clone()}
    model.generate("Hello.", voice=voice, exaggeration=0.9, seed=1, max_new_tokens=4)
    after = {k: v for k, v in voice.gen.items() if torch.is_tensor(v)} | {"e": voice.t3.emotion_adv}
    assert all(torch.equal(before[k], after[k]) for k in before)
    voice.save(tmp_path / "v.pt")
    loaded = Conditionals.load(tmp_path / "v.pt")
    mine, *others = (
        model.generate_tokens("Hello.", voice=v, seed=1, max_new_tokens=8) for v in (voice, loaded, tmp_path / "v.pt")
    )
    assert all(torch.equal(mine, other) for other in others)


def test_no_voice_says_so():
    model = OptimizedChatterboxTTS.from_random(size="tiny")
    model.conds = None
    with pytest.raises(MissingVoice, match="prepare_conditionals"):
        model.generate("Hello.")
    with pytest.raises(AssertionError):
        model.generate("Hello.")


def test_another_watermarker_or_none():
    class Louder:
        def apply_watermark(self, wav, sample_rate):
            assert sample_rate == 24_000
            return 0.5 * wav

    model = OptimizedChatterboxTTS.from_random(size="tiny", seed=0)
    model.watermarker = None
    plain = model.generate("Hello.", seed=1, max_new_tokens=8)
    model.watermarker = Louder()
    torch.testing.assert_close(model.generate("Hello.", seed=1, max_new_tokens=8), 0.5 * plain)
    tokens = model.generate_tokens("Hello.", seed=1, max_new_tokens=8)
    assert torch.isfinite(model.tokens_to_wav(tokens, seed=1)).all()


def test_speeches_and_pieces_can_be_looked_up(model):
    """Each is equal to itself alone; what is in them are tensors, which have no single answer."""
    one, other = model.speak(model.jobs(["No.", "No."], seeds=[1, 2], max_new_tokens=8))
    assert [one, other].index(other) == 1
    assert one.pieces[0] != other.pieces[0]
    assert {one: 1, one.pieces[0]: 2}.keys() == {one, one.pieces[0]}


def test_watermark_switch():
    marked = OptimizedChatterboxTTS.from_random(size="tiny", seed=0)
    plain = OptimizedChatterboxTTS.from_random(size="tiny", seed=0, enable_watermark=False)
    assert plain.watermarker is None
    a, b = (m.generate("Hello there.", seed=1, max_new_tokens=25) for m in (marked, plain))
    assert a.shape == b.shape
    assert not torch.equal(a, b)


def resident() -> float:
    """MB of memory this process holds."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_five_hundred_calls_leave_nothing_behind():
    torch.set_num_threads(1)
    model = OptimizedChatterboxTTS.from_random(size="tiny", seed=0, enable_watermark=False)
    texts = ["Hello.", "Hello there, you.", "A rather longer sentence, with a comma.", "No. Yes! And on it goes?"]

    def speak(calls: range) -> float:
        for i in calls:
            wav = model.generate(texts[i % 4], seed=i, max_new_tokens=4 + i % 9, n_cfm_timesteps=2, cfg_weight=i % 2)
            assert torch.isfinite(wav).all()
        gc.collect()
        return resident()

    level = speak(range(50))
    assert speak(range(50, 500)) - level < 20
