"""Programs wrap methods of a loaded model, move its parts about and hand them on: what they then get."""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import upstream_tiny
from conftest import NEEDS_UPSTREAM
from safetensors.torch import load_file, save_file

from chatterbox_opt import (
    EngineOptions,
    OptimizedChatterboxMultilingualTTS,
    OptimizedChatterboxTTS,
    OptimizedChatterboxTurboTTS,
    OptimizedChatterboxVC,
)
from chatterbox_opt.config import MODELS
from chatterbox_opt.parts.hyperparameters import Hyperparameters
from chatterbox_opt.parts.names import drop_invalid_tokens
from chatterbox_opt.pipeline import Cancelled
from chatterbox_opt.weights.random_init import write_checkpoint

DOORS = {"tts": OptimizedChatterboxTTS, "mtl": OptimizedChatterboxMultilingualTTS, "turbo": OptimizedChatterboxTurboTTS}
LONG = "This is one sentence of several. " * 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = {}
    for family in DOORS:
        out[family] = tmp_path_factory.mktemp(family)
        write_checkpoint(out[family], family, "tiny", seed=0)
    return out


def loaded(folders, family: str, **how):
    return DOORS[family].from_local(folders[family], "cpu", **{"enable_watermark": False, **how})


def call(model, text: str = "Hello there.", **how) -> torch.Tensor:
    language = {"language_id": "fr"} if model.family == "mtl" else {}
    return model.generate(text, **{"max_new_tokens": 20, **language, **how})


def looking_on(part, name: str, seen: list) -> None:
    own = getattr(part, name)

    def wrapper(*args, **kwargs):
        out = own(*args, **kwargs)
        seen.append((name, kwargs))
        return out

    setattr(part, name, wrapper)


# ---- wrapped methods -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["Hello there.", LONG], ids=["short", "long"])
@pytest.mark.parametrize("family", DOORS)
def test_methods_that_look_on_change_nothing(folders, family, text):
    model, seen = loaded(folders, family), []
    wanted = call(model, text, seed=3)
    draw = "inference_turbo" if family == "turbo" else "inference"
    looking_on(model.t3, draw, seen)
    looking_on(model.s3gen, "inference", seen)
    got = call(model, text, seed=3)
    if text == LONG:  # each piece alone, not beside others: sums in another order
        assert got.shape == wanted.shape
        assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()
    else:
        assert torch.equal(got, wanted)
    assert [name for name, _ in seen] == [draw, "inference"] * (1 if text != LONG else len(seen) // 2)
    assert len(seen) > 2 if text == LONG else len(seen) == 2
    torch.manual_seed(8)
    without = call(loaded(folders, family), "Hello there.")
    torch.manual_seed(8)
    assert torch.equal(call(model, "Hello there."), without), "torch's generators go on in the same way"


def test_a_limit_of_tokens_is_kept(folders):
    model = loaded(folders, "tts")
    own = model.t3.inference

    def limited(**how):
        how["max_new_tokens"] = min(how.get("max_new_tokens", 9), 9)
        return own(**how)

    model.t3.inference = limited
    assert torch.equal(call(model, seed=3), loaded(folders, "tts").generate("Hello there.", seed=3, max_new_tokens=9))
    model.t3.inference = own
    assert not model.t3.replaces("inference")
    assert torch.equal(call(model, seed=3), call(loaded(folders, "tts"), seed=3))


def test_another_number_of_steps(folders):
    model = loaded(folders, "tts")
    wanted = call(model, seed=3, n_cfm_timesteps=3)
    own = model.s3gen.inference
    model.s3gen.inference = lambda *args, **how: own(*args, **{**how, "n_cfm_timesteps": 3})
    assert torch.equal(call(model, seed=3), wanted)


def test_methods_that_look_on_keep_the_steps_of_the_options(folders):
    model = loaded(folders, "turbo", engine=EngineOptions(flow_steps=4))
    wanted = call(model, seed=3)
    looking_on(model.t3, "inference_turbo", [])
    assert torch.equal(call(model, seed=3), wanted)


def test_a_method_may_call_the_original_in_another_thread(folders):
    model = loaded(folders, "tts")
    wanted, own = call(model, seed=3), model.t3.inference
    with ThreadPoolExecutor(1) as pool:
        model.t3.inference = lambda **how: pool.submit(contextvars.copy_context().run, own, **how).result()
        assert torch.equal(call(model, seed=3), wanted)


def test_voice_conversion_goes_through_a_replaced_method(folders):
    recording = torch.randn(48_000, generator=torch.Generator().manual_seed(0)).numpy()
    model = OptimizedChatterboxVC.from_local(folders["tts"], "cpu", enable_watermark=False)
    how = dict(sample_rate=16_000, seed=1)
    wanted, other = model.generate(recording, n_cfm_timesteps=2, **how), model.generate(recording, **how)
    model.s3gen.inference = functools.partial(model.s3gen.inference, n_cfm_timesteps=2)
    assert torch.equal(model.generate(recording, **how), wanted)
    assert not torch.equal(wanted, other)


def test_a_call_by_parts_can_be_cancelled(folders):
    model, stop = loaded(folders, "tts"), threading.Event()
    looking_on(model.t3, "inference", [])
    stop.set()
    with pytest.raises(Cancelled):
        call(model, cancel=stop)


def test_a_replaced_method_says_which_calls_use_it(folders, caplog):
    model = loaded(folders, "tts")
    with caplog.at_level(logging.WARNING):
        looking_on(model.t3, "inference", [])
        looking_on(model.s3gen, "flow_inference", [])
        model.t3.compiled, model.t3.patched_model = False, None  # what upstream's programs reset, and nobody reads
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "model.t3.inference was replaced: generate() calls it" in said[0]
    assert "model.s3gen.flow_inference was replaced: no call of the model" in said[1]


def test_a_replaced_watermark(folders):
    model = loaded(folders, "tts", enable_watermark=True)
    marked = call(model, seed=3)
    model.watermarker.apply_watermark = lambda wav, sample_rate: wav
    plain = call(model, seed=3)
    assert torch.equal(plain, call(loaded(folders, "tts"), seed=3))
    assert not torch.equal(plain, marked)


# ---- parts that are moved, compiled, written into ------------------------------------------------


def test_parts_out_of_a_device_and_back(folders, caplog):
    """Around every request, as programs do to share a small GPU: said once, and everything stays."""
    model = loaded(folders, "tts", use_mixed_precision=False)
    wanted, pipeline = call(model, seed=3), model.pipeline.tokens
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            model.t3 = model.t3.half()
            model.s3gen, model.ve = model.s3gen.to("meta"), model.ve.cpu()
            model.t3.to("cpu")
        model.ve = None
    assert len([r for r in caplog.records if "stays" in r.getMessage()]) == 2
    assert model.pipeline.tokens is pipeline, "nothing is prepared anew"
    assert torch.equal(call(model, seed=3), wanted)
    assert next(model.t3.parameters()).device == torch.device("cpu")


def test_compiled_parts(folders):
    model = loaded(folders, "tts")
    wanted = call(model, seed=3)
    model.t3 = torch.compile(model.t3, mode="reduce-overhead")
    model.s3gen = torch.compile(model.s3gen)
    model.t3.tfmr = torch.compile(model.t3.tfmr)
    assert torch.equal(call(model, seed=3), wanted)
    with pytest.raises(TypeError, match="training"):
        model.t3(text_tokens=None)


@pytest.mark.parametrize("name", ["speaker_emb", "cond_prompt_speech_tokens"])
def test_a_voice_that_is_written_into(folders, name):
    """Its prefix, which is kept, is of what the tensors were."""
    model = loaded(folders, "tts")
    before = call(model, seed=3)
    getattr(model.conds.t3, name).copy_(getattr(model.conds.t3, name).flip(-1))
    after = call(model, seed=3)
    assert not torch.equal(after, before)
    fresh = loaded(folders, "tts")
    setattr(fresh.conds.t3, name, getattr(model.conds.t3, name).clone())
    assert torch.equal(call(fresh, seed=3), after)


def test_a_voice_made_of_chatterbox_ttss_class(folders):
    pytest.importorskip("chatterbox", reason=NEEDS_UPSTREAM)
    from chatterbox.models.t3.modules.cond_enc import T3Cond

    model = loaded(folders, "tts")
    wanted, own = call(model, seed=3, exaggeration=0.9), model.conds.t3
    model.conds.t3 = T3Cond(
        speaker_emb=own.speaker_emb, cond_prompt_speech_tokens=own.cond_prompt_speech_tokens,
        emotion_adv=0.9 * torch.ones(1, 1, 1),
    ).to(device=model.device)
    assert torch.equal(call(model, seed=3, exaggeration=0.9), wanted)


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tts", "mtl", "turbo"])
def test_hyperparameters_are_those_of_the_published_models(family):
    pytest.importorskip("chatterbox", reason=NEEDS_UPSTREAM)
    from chatterbox.models.t3.modules.t3_config import T3Config

    theirs = T3Config.multilingual() if family == "mtl" else T3Config.english_only()
    if family == "turbo":  # as its from_local() sets them
        theirs.text_tokens_dict_size, theirs.speech_tokens_dict_size, theirs.speech_cond_prompt_len = 50276, 6563, 375
        theirs.llama_config_name, theirs.input_pos_emb = "GPT2_medium", None
        theirs.use_perceiver_resampler = theirs.emotion_adv = False
    ours = Hyperparameters.of(MODELS[family].t3)
    for name in {*vars(theirs), "n_channels", "is_multilingual"}:
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("announced", ["hp", "text_emb"])
def test_a_fine_tuned_t3_with_more_characters(folders, announced):
    model = loaded(folders, "tts")
    state = load_file(folders["tts"] / "t3_cfg.safetensors")
    size, dim = state["text_emb.weight"].shape
    more = 3 * torch.randn(size + 6, dim, generator=torch.Generator().manual_seed(0))
    more[size + 5] = more[20]
    state = state | {"text_emb.weight": more, "text_head.weight": more}
    with pytest.raises(RuntimeError, match=r"text_emb\.weight has shape"):
        model.t3.load_state_dict(state, strict=False)
    if announced == "hp":
        model.t3.hp.text_tokens_dict_size = size + 6
    else:
        model.t3.text_emb = torch.nn.Embedding(size + 6, dim)
        model.t3.text_head = torch.nn.Linear(dim, size + 6, bias=False)
    model.t3.load_state_dict(state)
    assert model.t3.hp.text_tokens_dict_size == size + 6
    assert model.t3.text_emb.weight.shape == more.shape
    assert torch.equal(model.t3.text_emb.weight.float(), more)

    def tokens(character: int) -> list[int]:
        torch.manual_seed(1)
        ids = torch.tensor([255, *[character] * 9, 0])
        return model.t3.inference(t3_cond=model.conds.t3, text_tokens=ids, max_new_tokens=24)[0].tolist()

    assert tokens(size + 5) == tokens(20) != tokens(size + 4)


def test_a_file_of_something_else_is_not_taken_for_one(folders, caplog):
    """As trainers save it: upstream loads nothing of it without a word."""
    model = loaded(folders, "tts")
    before = call(model, seed=3)
    state = {f"t3.{name}": tensor for name, tensor in model.t3.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        found = model.t3.load_state_dict(state, strict=False)
    assert len(found.unexpected_keys) == len(state)
    assert "nothing was loaded" in caplog.text
    assert "t3." in caplog.text
    assert torch.equal(call(model, seed=3), before)


@pytest.mark.parametrize(("given", "kept"), [
    ([6561, 5, 6, 6562, 7], [5, 6]), ([5, 6], [5, 6]), ([5, 6561, 6, 6562], [5, 6]), ([6562], []), ([8000, 4], [4]),
], ids=str)
def test_ids_that_are_no_sound(given, kept):
    row = torch.tensor(given)
    assert drop_invalid_tokens(row).tolist() == kept
    assert drop_invalid_tokens(row[None]).tolist() == [kept]


def test_a_small_t3_of_a_fine_tuners_own_making(folders):
    """A T3 built with the model's own `hp`, changed, and put in its place."""
    pytest.importorskip("chatterbox", reason=NEEDS_UPSTREAM)
    model = loaded(folders, "tts")
    before = call(model, seed=3)
    theirs = upstream_tiny.load(folders["tts"], "tts").t3
    model.t3 = theirs
    assert torch.equal(call(model, seed=3), before)
    save_file(model.t3.state_dict(), folders["tts"] / "again.safetensors")
    assert torch.equal(call(DOORS["tts"].from_local(
        folders["tts"], "cpu", t3_file="again.safetensors", enable_watermark=False), seed=3), before)


# ---- beside other calls --------------------------------------------------------------------------


def test_two_threads_with_wrapped_methods_and_seeds(folders):
    """A seed is the call's own, and torch's generators are left alone."""
    model = loaded(folders, "tts")
    wanted = {seed: call(model, seed=seed) for seed in range(4)}
    looking_on(model.t3, "inference", [])
    looking_on(model.s3gen, "inference", [])
    state, heard = torch.get_rng_state(), {}

    def speak(seed: int) -> None:
        heard[seed] = call(model, seed=seed)

    threads = [threading.Thread(target=speak, args=[seed]) for seed in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(heard[seed], wave, atol=1e-4) for seed, wave in wanted.items())
    assert torch.equal(torch.get_rng_state(), state)


def test_long_text_without_a_seed(folders):
    model = loaded(folders, "tts")
    torch.manual_seed(6)
    wanted = call(model, LONG)
    looking_on(model.t3, "inference", [])
    torch.manual_seed(6)
    got = call(model, LONG)
    assert got.shape == wanted.shape
    assert torch.allclose(got, wanted, atol=1e-3)


def test_progress_and_cancelling_reach_the_parts(folders):
    model, seen, stop = loaded(folders, "tts"), [], threading.Event()
    looking_on(model.t3, "inference", [])
    call(model, LONG, progress=lambda drawn, most: seen.append((drawn, most)))
    drawn = [n for n, _ in seen]
    assert drawn == sorted(drawn)
    assert drawn[-1] > 20, "of several pieces"
    assert len({most for _, most in seen}) == 1
    looking_on(model.s3gen, "inference", [])
    own = model.s3gen.inference
    model.s3gen.inference = lambda **how: (own(**how), stop.set())[0]
    with pytest.raises(Cancelled):
        call(model, cancel=stop)
    with pytest.raises(ValueError, match="takes, score and retries"):
        call(model, takes=2)


def test_a_method_bound_to_the_part(folders):
    model, seen = loaded(folders, "tts"), []
    own = model.t3.inference

    def inference(self, **how):
        seen.append(self)
        return own(**how)

    model.t3.inference = types.MethodType(inference, model.t3)
    call(model)
    assert seen == [model.t3]


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_a_wrapper_gets_what_chatterbox_tts_gives(folders, family):
    """Whose Turbo gives steps, and no limit of tokens."""
    model, seen = loaded(folders, family), []
    draw = "inference_turbo" if family == "turbo" else "inference"
    for part, name in ((model.t3, draw), (model.s3gen, "inference")):
        looking_on(part, name, seen)
    if family == "turbo":
        model.t3.inference_turbo = functools.partial(model.t3.inference_turbo, max_gen_len=6)
        model.generate("Hello there.")
    else:
        call(model)
    (_, tokens), (_, sound) = seen
    assert set(sound) == {"speech_tokens", "ref_dict"} | ({"n_cfm_timesteps"} if family == "turbo" else set())
    assert sound["speech_tokens"].ndim == 1
    if family == "turbo":
        assert tokens["max_gen_len"] == 6
        assert sound["n_cfm_timesteps"] == 2
        assert len(sound["speech_tokens"]) <= 7 + 3, "one more, as in chatterbox-tts, and three of silence"


def test_a_wrapper_whose_tokens_go_on_after_the_end(folders):
    model = loaded(folders, "tts")
    own, heard = model.t3.inference, []
    model.t3.inference = lambda **how: torch.cat([own(**how)[:, :8], torch.tensor([[6562, 5, 6, 7]])], dim=1)
    looking_on(model.s3gen, "inference", heard)
    call(model)
    assert len(heard[0][1]["speech_tokens"]) == 8


def test_modules_that_are_assigned_are_not_taken_without_a_word(folders, caplog):
    model = loaded(folders, "tts")
    before = call(model, seed=3)
    with caplog.at_level(logging.WARNING):
        model.t3.speech_head = torch.nn.Linear(64, 8194)
    assert "model.t3.speech_head was assigned" in caplog.text
    assert torch.equal(call(model, seed=3), before)
    for name in ("t3", "s3gen", "ve"):
        with pytest.raises(TypeError, match="no torch module"):
            setattr(model, name, object())
    with pytest.raises(ValueError, match="ref_sr"):
        model.s3gen.inference(torch.arange(9), ref_wav=torch.zeros(24_000))


def test_a_tokenizer_part_stays_as_it_is(folders):
    model = loaded(folders, "tts")
    tokenizer = model.s3gen.tokenizer
    assert tokenizer.half().cuda().train().double() is tokenizer
    assert {p.dtype for p in model.voices.tokenizer.parameters()} == {torch.float32}
