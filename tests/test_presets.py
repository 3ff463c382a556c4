"""Presets and decoders: what each changes for every class, and which option takes precedence."""

import logging
import re
import shutil
from pathlib import Path

import pytest
import torch

from chatterbox_opt import (
    EngineOptions,
    OptimizedChatterboxMultilingualTTS,
    OptimizedChatterboxTTS,
    OptimizedChatterboxTurboTTS,
    OptimizedChatterboxVC,
    presets,
)
from chatterbox_opt.config import MODELS
from chatterbox_opt.engine.resolve import resolve
from chatterbox_opt.presets import PRESETS
from chatterbox_opt.weights import hub
from chatterbox_opt.weights.files import MEANFLOW
from chatterbox_opt.weights.random_init import write_checkpoint

CPU = torch.device("cpu")
DOORS = {
    "tts": OptimizedChatterboxTTS, "mtl": OptimizedChatterboxMultilingualTTS, "turbo": OptimizedChatterboxTurboTTS,
    "vc": OptimizedChatterboxVC,
}
TOKENS = torch.arange(12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints of each family, with the two-step decoder."""
    families = ("tts", "mtl", "turbo", "nano")
    made = {f: write_checkpoint(tmp_path_factory.mktemp(f) / f, f, decoder="meanflow") for f in families}
    return made | {"vc": made["tts"]}


@pytest.fixture
def plain(folders, tmp_path):
    """An English checkpoint without it."""
    folder = shutil.copytree(folders["tts"], tmp_path / "plain")
    (folder / MEANFLOW).unlink()
    return folder


def english(folder, **how):
    return OptimizedChatterboxTTS.from_local(folder, "cpu", enable_watermark=False, **how)


def solved(model) -> list[int]:
    """Returns the numbers of flow steps of a call and of a stream."""
    seen, begin = [], model.pipeline.mel.begin

    def listen(rows, steps):
        seen.append((solve := begin(rows, steps)).steps)
        return solve

    model.pipeline.mel.begin = listen
    model.tokens_to_wav(TOKENS, seed=1)
    list(model.generate_stream("Hello.", seed=1, max_new_tokens=6, **({"language_id": "en"} if model.family == "mtl"
        else {})))
    return sorted(set(seen))


# ---- the decoder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_the_two_step_decoder_is_one_switch(folders, door):
    model = DOORS[door].from_local(folders[door], "cpu", decoder="meanflow", enable_watermark=False)
    assert model.config.flow.meanflow
    assert model.s3gen.flow.decoder.estimator.time_embed_mixer is not None
    own = DOORS[door].from_local(folders[door], "cpu", enable_watermark=False)
    assert own.config.flow.meanflow == (door == "turbo"), "a file that lies there is not taken unasked"
    if door != "vc":
        assert solved(model) == [2]
        assert solved(own) == [2 if door == "turbo" else 10]


def test_names_and_paths_are_one_mechanism(folders, plain):
    by_name, by_path = english(folders["tts"], decoder="meanflow"), english(plain, decoder=folders["tts"] / MEANFLOW)
    a, b = (m.tokens_to_wav(TOKENS, seed=1) for m in (by_name, by_path))
    assert torch.equal(a, b)
    own, standard = (english(folders["tts"], decoder=d).tokens_to_wav(TOKENS, seed=1) for d in (None, "standard"))
    assert torch.equal(own, standard)
    assert not torch.equal(own, a)


@pytest.mark.parametrize("door", ["tts", "vc"])
def test_a_missing_decoder_is_named(plain, door):
    with pytest.raises(FileNotFoundError, match=rf"{MEANFLOW}.*from_pretrained.*holds.*s3gen\.safetensors"):
        DOORS[door].from_local(plain, "cpu", decoder="meanflow")


def test_minis_decoder_of_two_steps_differs_in_the_estimator_alone():
    ten, two = (OptimizedChatterboxTTS.from_mini(decoder=d, enable_watermark=False) for d in (None, "meanflow"))
    assert (ten.config.flow.meanflow, two.config.flow.meanflow) == (False, True)
    a, b = (model.s3gen.network.state_dict() for model in (ten, two))
    assert set(b) - set(a) == {"flow.decoder.estimator.time_embed_mixer.weight"}
    changed = {k for k in a if not torch.equal(a[k], b[k])}
    assert changed
    assert all(k.startswith("flow.decoder.estimator.") and "time_mlp" not in k for k in changed)
    tokens = two.generate_tokens("Hello there.", seed=1)
    assert torch.equal(tokens, ten.generate_tokens("Hello there.", seed=1))
    assert solved(two) == [2]
    assert solved(ten) == [10], "unasked it is the flow itself"


@pytest.mark.parametrize("door", DOORS)
def test_random_weights_with_it(door):
    for how in (dict(decoder="meanflow"), dict(preset="fast")):
        assert DOORS[door].from_random(enable_watermark=False, **how).config.flow.meanflow
    plain = DOORS[door].from_random(enable_watermark=False, decoder="standard", preset="fast")
    assert plain.config.flow.meanflow == (door == "turbo")


@pytest.mark.parametrize("door", DOORS)
def test_from_pretrained_fetches_that_one_file(folders, plain, door, monkeypatch):
    fetched = []
    model = folders[door] if door in ("mtl", "turbo") else plain
    monkeypatch.setattr(hub, "download", lambda *_, **__: model)
    monkeypatch.setattr(hub, "download_decoder", lambda: fetched.append(1) or folders["turbo"] / MEANFLOW)
    for how in (dict(), dict(decoder="standard"), dict(preset="balanced"), dict(preset="fast", decoder="standard")):
        made = DOORS[door].from_pretrained("cpu", enable_watermark=False, **how)
        assert made.config.flow.meanflow == (door == "turbo")
    assert not fetched, "nothing is fetched that was not asked for"
    for how in (dict(decoder="meanflow"), dict(preset="fast")):
        assert DOORS[door].from_pretrained("cpu", enable_watermark=False, **how).config.flow.meanflow
    assert len(fetched) == (0 if door == "turbo" else 2), "Turbo's own is that file"


def test_a_decoder_of_that_name_here_is_not_fetched(folders, plain, tmp_path, monkeypatch):
    shutil.copyfile(folders["turbo"] / MEANFLOW, tmp_path / MEANFLOW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "download", lambda *_, **__: plain)
    monkeypatch.setattr(hub, "download_decoder", lambda: pytest.fail("a download was begun"))
    for decoder in (MEANFLOW, Path(MEANFLOW)):
        made = OptimizedChatterboxTTS.from_pretrained("cpu", enable_watermark=False, decoder=decoder)
        assert made.config.flow.meanflow


def test_an_unreachable_hub(plain, monkeypatch, caplog):
    def unreachable():
        raise hub.HubUnreachable("nobody answers")

    monkeypatch.setattr(hub, "download", lambda *_, **__: plain)
    monkeypatch.setattr(hub, "download_decoder", unreachable)
    with pytest.raises(hub.HubUnreachable):
        OptimizedChatterboxTTS.from_pretrained("cpu", decoder="meanflow")
    with caplog.at_level(logging.WARNING):
        model = OptimizedChatterboxTTS.from_pretrained("cpu", preset="fast", enable_watermark=False)
    assert "nobody answers" in caplog.text
    assert (model.options.flow_steps, model.options.prompt_seconds) == (6, 5.0)


def test_names_are_checked_ahead_of_a_download(monkeypatch, folders):
    monkeypatch.setattr(hub, "download", lambda *_, **__: pytest.fail("a download was begun"))
    for door in DOORS.values():
        with pytest.raises(ValueError, match=r"preset='quick'.*exact, balanced, fast"):
            door.from_pretrained("cpu", preset="quick")
        with pytest.raises(ValueError, match=r"decoder='quick'.*standard, meanflow"):
            door.from_pretrained("cpu", decoder="quick")
    with pytest.raises(ValueError, match="preset='quick'"):
        english(folders["tts"], preset="quick")


# ---- presets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_options_of_each_preset(folders, door):
    def options(**how):
        return DOORS[door].from_local(folders[door], "cpu", enable_watermark=False, **how).options

    assert options(preset="exact") == resolve(EngineOptions.exact(), CPU)
    assert options(preset="balanced") == options() == resolve(EngineOptions(), CPU)
    assert options(preset="fast") == resolve(EngineOptions(prompt_seconds=5.0), CPU)
    guided = EngineOptions(flow_steps=6, cfm_schedule="sway", prompt_seconds=5.0)
    if door != "turbo":
        assert options(preset="fast", decoder="standard") == resolve(guided, CPU)


def test_t3_is_in_int8_where_that_is_quicker(folders, monkeypatch):
    """At published sizes, on a CPU. The weights of small ones stay in the processor's cache."""
    for config in MODELS.values():
        assert PRESETS["fast"].changes("cpu", config)["quantize"] == "int8"
        assert "quantize" not in PRESETS["fast"].changes("cuda", config)
    assert "flow_steps" in PRESETS["fast"].changes("cuda", MODELS["tts"])
    assert english(folders["tts"], preset="fast").options.quantize is None
    assert english(folders["tts"], preset="fast", quantize="int8").options.quantize == "int8"
    monkeypatch.setattr(presets, "LARGE_T3", 0)
    assert english(folders["tts"], preset="fast").options.quantize == "int8"


def test_nano_and_mini(folders, monkeypatch):
    for decoder, steps in ((None, None), ("standard", 6)):
        mini = OptimizedChatterboxTTS.from_mini(preset="fast", decoder=decoder)
        assert (mini.options.quantize, mini.options.flow_steps) == (None, steps)
        assert mini.config.flow.meanflow == (decoder is None)
    monkeypatch.setattr(presets, "LARGE_T3", 0)
    nano = OptimizedChatterboxTurboTTS.from_local(folders["nano"], "cpu", nano=True, preset="fast")
    assert (nano.options.quantize, nano.options.flow_steps) == ("int8", None)


def test_steps_of_a_call_override_those_of_the_engine(plain):
    model = english(plain, preset="fast")
    assert solved(model) == [6]
    short = english(plain, engine=EngineOptions(flow_steps=3))
    assert torch.equal(short.tokens_to_wav(TOKENS, seed=1),
                       english(plain).tokens_to_wav(TOKENS, seed=1, n_cfm_timesteps=3))
    assert solved(short) == [3]
    for bad in (0, 101, 2.5, True):
        with pytest.raises(ValueError, match="flow_steps="):
            EngineOptions(flow_steps=bad)


@pytest.mark.parametrize(("how", "field", "value", "warned_of"), [
    (dict(preset="exact", quantize="int8"), "quantize", "int8", True),
    (dict(preset="exact", engine=EngineOptions(poll_every=8, slots=2)), "slots", 2, True),
    (dict(preset="fast", decoder="standard", engine=EngineOptions(flow_steps=8)), "flow_steps", 8, True),
    (dict(preset="fast", quantize="int4"), "quantize", "int4", True),
    (dict(preset="fast", use_mixed_precision=False), "dtype", "float32", False),
    (dict(preset="balanced", quantize="int8"), "quantize", "int8", False),
    (dict(preset="fast"), "quantize", "int8", False),
    (dict(preset="exact", decoder="meanflow"), "dtype", "float32", True),
])  # fmt: skip
def test_given_options_override_the_preset(folders, caplog, monkeypatch, how, field, value, warned_of):
    monkeypatch.setattr(presets, "LARGE_T3", 0)
    with caplog.at_level(logging.WARNING, logger="chatterbox_opt"):
        assert getattr(english(folders["tts"], **how).options, field) == value
    warned = [r for r in caplog.records if "preset=" in r.getMessage()]
    assert len(warned) == warned_of, "told once, where the two contradict"


def test_the_table_of_the_document_is_that_of_the_code():
    text = (Path(__file__).parents[1] / "docs" / "options.md").read_text(encoding="utf-8")
    rows = re.search(r"<!-- presets -->(.*?)<!-- /presets -->", text, re.S)[1].strip().splitlines()[2:]
    found = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]

    def cell(changes) -> str:
        whole = EngineOptions(**changes) == EngineOptions.exact()
        return "`EngineOptions.exact()`" if whole else ", ".join(f"`{k}={v!r}`" for k, v in changes.items())

    assert found == [
        [f"`{name}`", *map(cell, (p.always, p.on_cpu_large, p.guided)), f"`{p.decoder}`" if p.decoder else "",
         "yes" if p.approximate else "no"]
        for name, p in PRESETS.items()
    ]


# ---- upstream's objects --------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tts", "vc"])
def test_optimize_takes_both(upstream, folders, family, monkeypatch):
    import upstream_tiny

    from chatterbox_opt.upstream import optimize
    from chatterbox_opt.weights.load import read_config

    file, config = folders["turbo"] / MEANFLOW, read_config(folders["tts"], "tts")
    given = upstream_tiny.load(folders["tts"], family)
    monkeypatch.setattr(hub, "download_decoder", lambda: file)
    for how in (dict(decoder=file), dict(decoder="meanflow"), dict(decoder=file, preset="fast")):
        assert optimize(given, config=config, enable_watermark=False, **how).config.flow.meanflow
    monkeypatch.setattr(hub, "download_decoder", lambda: pytest.fail("a download was begun"))
    fast = optimize(given, config=config, enable_watermark=False, preset="fast")
    assert (fast.options.quantize, fast.options.flow_steps, fast.config.flow.meanflow) == (None, 6, False)
