"""The same lines of a program, run with chatterbox-tts's model and with ours on the same tiny weights: equal tokens,
sound and embeddings. All of them are lines that programs written for chatterbox-tts contain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import upstream_tiny
from conftest import NEEDS_UPSTREAM
from torch.nn import functional as F

import chatterbox_opt
from chatterbox_opt import EngineOptions
from chatterbox_opt.weights.files import MINI
from chatterbox_opt.weights.random_init import write_checkpoint

pytest.importorskip("chatterbox", reason=NEEDS_UPSTREAM)
EXACT = dict(engine=EngineOptions.exact(), enable_watermark=False)
RATE = 48_000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tts")
    write_checkpoint(folder, "tts", "tiny", seed=0)
    return upstream_tiny.load(folder, "tts"), chatterbox_opt.OptimizedChatterboxTTS.from_local(folder, "cpu", **EXACT)


@pytest.fixture(scope="module")
def turbos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("turbo")
    write_checkpoint(folder, "turbo", "tiny", seed=0)
    mine = chatterbox_opt.OptimizedChatterboxTurboTTS.from_local(folder, "cpu", **EXACT)
    return upstream_tiny.load(folder, "turbo"), mine


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """3 s at 48 kHz, with silence at both ends."""
    time = np.arange(3 * RATE) / RATE
    noise = np.random.RandomState(0).randn(len(time))
    loud = (time > 0.4) & (time < 2.5)
    return ((0.3 * np.sin(1500 * time * (1 + time)) + 0.1 * noise) * loud).astype(np.float32)


def in_turn(pair, program):
    """Runs `program` with both, from the same state of torch's generators."""
    for model in pair:
        torch.manual_seed(5)
        with torch.inference_mode():
            yield program(model)


def close(got: torch.Tensor, wanted: torch.Tensor, apart: float = 3e-4) -> None:
    assert got.shape == wanted.shape
    assert got.dtype == wanted.dtype
    assert got.device == wanted.device
    assert wanted.abs().max() > 1e-3, "zeros would prove nothing"
    assert (got - wanted).abs().max() <= apart * wanted.abs().max()


def text_ids(model, text: str, rows: int) -> torch.Tensor:
    ids = model.tokenizer.text_to_tokens(text).to(model.device)
    ids = F.pad(torch.cat([ids] * rows), (1, 0), value=model.t3.hp.start_text_token)
    return F.pad(ids, (0, 1), value=model.t3.hp.stop_text_token)


# ---- T3 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [
    dict(cfg_weight=0.5, temperature=0.8), dict(cfg_weight=0.3, temperature=1.0, top_p=0.9, min_p=0.1),
    dict(cfg_weight=0.5, repetition_penalty=1.6, do_sample=True, stop_on_eos=True, num_return_sequences=1),
], ids=str)
def test_inference(models, how):
    def program(model):
        ids = text_ids(model, "Hello there.", rows=2)
        return model.t3.inference(t3_cond=model.conds.t3, text_tokens=ids, max_new_tokens=30, **how)

    wanted, got = in_turn(models, program)
    assert torch.equal(got, wanted)
    assert got.shape[1] > 5


def test_speech_that_ends_by_itself_ends_with_the_end_id():
    """Programs cut it off themselves."""
    def program(model):
        ids = text_ids(model, "Yes, of course.", rows=2)
        return model.t3.inference(t3_cond=model.conds.t3, text_tokens=ids, max_new_tokens=500, top_p=1.0)

    pair = upstream_tiny.load(MINI, "tts"), chatterbox_opt.OptimizedChatterboxTTS.from_mini(**EXACT)
    wanted, got = in_turn(pair, program)
    assert wanted[0, -1] == pair[1].t3.hp.stop_speech_token
    assert wanted.shape[1] > 20
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("how", [{}, dict(temperature=0.9, top_k=50, top_p=0.8, repetition_penalty=1.4)], ids=str)
def test_inference_turbo(turbos, how):
    def program(model):
        ids = model.tokenizer("Hello there.", return_tensors="pt").input_ids if model is turbos[0] else (
            torch.tensor([model.tokenizer.encode("Hello there.")]))
        return model.t3.inference_turbo(model.conds.t3, ids, max_gen_len=30, **how)

    wanted, got = in_turn(turbos, program)
    assert torch.equal(got, wanted)
    assert got.shape[1] > 5


def test_hyperparameters(models, turbos):
    for upstream, mine in (models, turbos):
        # upstream has the name of a published size, and the width that belongs to that
        for name in set(vars(mine.t3.hp)) - {"n_channels", "llama_config_name"}:
            assert getattr(mine.t3.hp, name) == getattr(upstream.t3.hp, name), name
        assert mine.t3.hp.n_channels == mine.t3.dim == upstream.t3.dim
        assert torch.device(mine.t3.device) == torch.device(upstream.t3.device)


def test_a_text_at_a_time(models):
    mine = models[1]
    ids = text_ids(mine, "Hello there.", rows=1)
    alone = [mine.t3.inference(t3_cond=mine.conds.t3, text_tokens=t, max_new_tokens=8, temperature=0.0)
             for t in (ids, ids[0], torch.cat([ids, ids]))]
    assert torch.equal(alone[0], alone[1])
    assert torch.equal(alone[0], alone[2])
    for wrong in (torch.cat([ids, ids.flip(1)]), torch.cat([ids] * 3)):
        with pytest.raises(ValueError, match="one text at a time"):
            mine.t3.inference(t3_cond=mine.conds.t3, text_tokens=wrong)
    with pytest.raises(AssertionError, match="start and end ids"):
        mine.t3.inference(t3_cond=mine.conds.t3, text_tokens=ids[:, 1:-1])
    with pytest.raises(ValueError, match="initial_speech_tokens"):
        mine.t3.inference(t3_cond=mine.conds.t3, text_tokens=ids, initial_speech_tokens=torch.tensor([[7]]))


# ---- S3Gen ---------------------------------------------------------------------------------------

TOKENS = torch.arange(40) * 97 % 6561


@pytest.mark.parametrize("shape", [(40,), (1, 40)], ids=str)
def test_sound_of_tokens(models, shape):
    wanted, got = in_turn(models, lambda m: m.s3gen.inference(TOKENS.view(shape), ref_dict=m.conds.gen)[0])
    close(got, wanted)


def test_sound_of_turbos_tokens(turbos):
    def program(model):
        return model.s3gen.inference(speech_tokens=TOKENS, ref_dict=model.conds.gen, n_cfm_timesteps=2)[0]

    wanted, got = in_turn(turbos, program)
    close(got, wanted)


def test_sound_in_the_voice_of_a_recording(models, recording):
    def program(model):
        return model.s3gen.inference(TOKENS, ref_wav=torch.from_numpy(recording)[None], ref_sr=RATE)[0]

    wanted, got = in_turn(models, program)
    close(got, wanted)


def test_mel_and_wave_apart(models):
    def program(model):
        mel = model.s3gen.flow_inference(TOKENS, ref_dict=model.conds.gen, finalize=True)
        wave, source = model.s3gen.hift_inference(mel, None)
        return mel, wave, source, *model.s3gen.hift_inference(mel, cache_source=source[:, :, :4000])

    wanted, got = in_turn(models, program)
    for mine, theirs in zip(got, wanted, strict=True):
        close(mine, theirs)
    assert torch.equal(got[4][:, :, :4000], got[2][:, :, :4000])


def test_a_mel_that_goes_on_leaves_out_what_it_only_looks_at(models):
    mine = models[1]
    torch.manual_seed(1)
    whole = mine.s3gen.flow_inference(TOKENS, ref_dict=mine.conds.gen, finalize=True)
    torch.manual_seed(1)
    begun = mine.s3gen.flow_inference(TOKENS, ref_dict=mine.conds.gen)
    assert begun.shape == (1, 80, 2 * (40 - 3))
    assert torch.equal(begun, whole[:, :, : begun.shape[2]])


def test_a_recordings_half_for_the_decoder(models, recording):
    wanted, got = in_turn(models, lambda m: m.s3gen.embed_ref(recording, RATE, device=m.device))
    assert set(got) == set(wanted)
    assert torch.equal(got["prompt_token"], wanted["prompt_token"])
    assert got["prompt_token_len"].tolist() == wanted["prompt_token_len"].tolist()
    for name in ("prompt_feat", "embedding"):
        close(got[name], wanted[name], 1e-5)


@pytest.mark.parametrize("samples", [0, 100, 1900, 2399])
def test_a_recording_too_short_for_a_voice_is_refused_as_such(models, recording, samples):
    """Not as broken weights, as a voice of NaN would be."""
    mine, short = models[1], recording[:samples]
    with pytest.raises(ValueError, match=f"{samples / RATE:.3f} s is too short"):
        mine.s3gen.inference(TOKENS, ref_wav=short, ref_sr=RATE)
    assert mine.s3gen.embed_ref(recording[: RATE // 20], RATE)["embedding"].isfinite().all()


def test_speech_tokens_of_recordings(models, recording):
    at_16k = recording[::3].copy()

    def program(model):
        return (*model.s3gen.tokenizer([at_16k, at_16k[:20_000]]),
                *model.s3gen.tokenizer(torch.from_numpy(at_16k)[None], max_len=20))

    wanted, got = in_turn(models, program)
    for mine, theirs in ((got[:2], wanted[:2]), (got[2:], wanted[2:])):
        assert mine[0].shape == theirs[0].shape
        assert torch.equal(mine[1], theirs[1])
        for row, other, count in zip(mine[0], theirs[0], mine[1].tolist(), strict=True):
            assert torch.equal(row[:count], other[:count])


def test_what_is_asked_of_s3gen_wrongly(models):
    mine = models[1]
    with pytest.raises(ValueError, match="one row"):
        mine.s3gen.inference(TOKENS.view(2, 20), ref_dict=mine.conds.gen)
    with pytest.raises(AssertionError, match="either"):
        mine.s3gen.inference(TOKENS)
    with pytest.raises(ValueError, match="speech_feat"):
        mine.s3gen.hift_inference(torch.zeros(80, 12))
    with pytest.raises(ValueError, match="samples are needed"):
        mine.s3gen.embed_ref(np.zeros((2, 9000), np.float32), 24_000)


# ---- the voice encoder ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{}, dict(as_spk=True), dict(trim_top_db=None)], ids=str)
def test_speaker_embeddings(models, recording, how):
    at_16k = recording[::3].copy()

    def program(model):
        return torch.from_numpy(model.ve.embeds_from_wavs([at_16k, at_16k[6000:]], sample_rate=16_000, **how))

    wanted, got = in_turn(models, program)
    close(got, wanted, 1e-5)


def test_likeness_of_speakers(models, recording):
    at_16k = recording[::3].copy()

    def program(model):
        each = model.ve.embeds_from_wavs([at_16k, at_16k[6000:]], 16_000)
        return model.ve.voice_similarity(each, each[0])

    wanted, got = in_turn(models, program)
    assert got == pytest.approx(wanted, abs=1e-6)
    assert 0.5 < got < 1


# ---- the whole of a call, by its parts -----------------------------------------------------------


def test_a_program_that_makes_speech_by_the_parts_says_what_generate_says(models):
    mine = models[1]
    torch.manual_seed(9)
    wanted = mine.generate("Hello there.", max_new_tokens=30)
    torch.manual_seed(9)
    tokens = mine.t3.inference(
        t3_cond=mine.conds.t3, text_tokens=text_ids(mine, "Hello there.", rows=2), max_new_tokens=30, top_p=1.0
    )[0]
    wave, _ = mine.s3gen.inference(speech_tokens=tokens[tokens < 6561], ref_dict=mine.conds.gen)
    assert torch.equal(wave, wanted)
