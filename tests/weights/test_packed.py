"""Packed checkpoints speak as the checkpoint does, or are refused with a reason."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS, OptimizedChatterboxTurboTTS, OptimizedChatterboxVC
from chatterbox_opt.packing import pack
from chatterbox_opt.weights import packed as format_of_packed
from chatterbox_opt.weights.packed import FORMAT, MARKER, NAMES
from chatterbox_opt.weights.random_init import write_checkpoint

DOORS = {"tts": OptimizedChatterboxTTS, "turbo": OptimizedChatterboxTurboTTS}


@pytest.fixture(scope="module")
def packed(folders, tmp_path_factory):
    """English in int8 and bfloat16."""
    out = tmp_path_factory.mktemp("packed") / "tts"
    pack(folders["tts"], out, quantize="int8", engine=EngineOptions(dtype="bfloat16", s3gen_dtype="bfloat16"))
    return out


@pytest.fixture
def spoilt(packed, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(packed, tmp_path / "spoilt")


def load(folder, family="tts", **how):
    return DOORS[family].from_local(folder, "cpu", enable_watermark=False, **how)


def said(model):
    return model.generate("Hello there.", seed=3, max_new_tokens=20)


def flip(path, at=-100):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit_marker(folder, **changes):
    file = folder / MARKER
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# ---- where it is written --------------------------------------------------------------------------


def test_an_empty_folder_is_filled_where_it_is(folders, tmp_path, monkeypatch):
    """It may be a volume, which can neither be renamed nor replaced, or the folder that the process is in."""
    out = tmp_path / "volume"
    out.mkdir()
    before = out.stat().st_ino
    monkeypatch.chdir(out)
    pack(folders["tts"], ".")
    assert out.stat().st_ino == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["volume"]
    assert not list(out.glob(".*"))
    assert said(load(out)).numel()


def test_a_link_leads_to_the_folder(folders, tmp_path):
    link, out = tmp_path / "link", tmp_path / "out"
    link.symlink_to(out)
    pack(folders["tts"], link)
    assert link.is_symlink()
    assert (out / MARKER).is_file()


# ---- the same speech -----------------------------------------------------------------------------


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize(
    ("family", "dtype"), [("tts", "float32"), ("tts", "bfloat16"), ("tts", "float16"), ("turbo", "float32"),
                          ("turbo", "bfloat16")]
)
def test_a_packed_checkpoint_says_what_the_checkpoint_says(folders, tmp_path, family, dtype, quantize):
    engine = EngineOptions(quantize=quantize, dtype=dtype, s3gen_dtype="float32" if dtype == "float16" else dtype)
    pack(folders[family], tmp_path / "packed", family, engine=engine)
    model = load(tmp_path / "packed", family)
    assert (model.options.dtype, model.options.quantize) == (dtype, quantize)
    assert torch.equal(said(model), said(load(folders[family], family, engine=engine)))


@pytest.mark.parametrize("held", ["int8", None])
def test_presets_fine_tunes_and_decoders(folders, tmp_path, caplog, monkeypatch, held):
    if held:
        monkeypatch.setattr("chatterbox_opt.presets.LARGE_T3", 0)  # as of a published size
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes((write_checkpoint(tmp_path / "other", "tts", seed=7) / "t3_cfg.safetensors").read_bytes())
    how = dict(t3_file=str(mine), decoder=folders["turbo"] / "s3gen_meanflow.safetensors")
    assert pack(folders["tts"], tmp_path / "packed", preset="fast", **how).quantize == held
    wanted = load(folders["tts"], preset="fast", **how)
    model = load(tmp_path / "packed", preset="fast")
    assert model.options == wanted.options
    assert model.config.flow.meanflow
    assert torch.equal(said(model), said(wanted))
    assert "preset" not in caplog.text


def test_a_preset_packs_the_decoder_that_it_loads(tmp_path):
    folder = write_checkpoint(tmp_path / "both", "tts", decoder="meanflow")
    pack(folder, tmp_path / "packed", preset="fast")
    packed, plain = load(tmp_path / "packed", preset="fast"), load(folder, preset="fast")
    assert plain.config.flow.meanflow
    assert packed.options == plain.options
    assert torch.equal(said(packed), said(plain))


def test_a_packed_checkpoint_converts_voices_and_takes_another_decoder(folders, packed):
    engine = EngineOptions(dtype="bfloat16", s3gen_dtype="bfloat16")
    tokens = torch.arange(40)
    for how in ({}, {"decoder": folders["turbo"] / "s3gen_meanflow.safetensors"}):
        a, b = (OptimizedChatterboxVC.from_local(f, "cpu", enable_watermark=False, engine=e, **how)
                for f, e in ((folders["tts"], engine), (packed, None)))
        assert torch.equal(*(m.pipeline.render([tokens], m.ref_dict, 3) for m in (a, b)))


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        (dict(quantize="int4"), "quantize='int4' was asked for"),
        (dict(use_mixed_precision=False), "dtype='float32' and s3gen_dtype='float32' was asked for"),
        (dict(engine=EngineOptions(s3gen_dtype="float16")), "s3gen_dtype='float16' was asked for"),
        (dict(preset="exact"), "dtype='float32'"),
        (dict(t3_file="t3_mine.safetensors"), "its T3 made from t3_cfg"),
    ],
)
def test_what_a_folder_is_not_packed_for_is_refused(packed, asked, named):
    with pytest.raises(ValueError, match="is packed") as error:
        load(packed, **asked)
    assert named in str(error.value)


def test_another_device_is_refused(spoilt):
    form = json.loads((spoilt / MARKER).read_text())["form"]
    edit_marker(spoilt, form=form | {"device": "cuda"})
    with pytest.raises(ValueError, match="is packed for cuda, not cpu"):
        load(spoilt)


def test_a_processor_without_its_products_is_refused(folders, tmp_path, monkeypatch):
    pack(folders["tts"], tmp_path / "packed", engine=EngineOptions(dtype="float16", s3gen_dtype="float32"))
    monkeypatch.setattr("chatterbox_opt.packing.forms.packs_float16", lambda device: False)
    with pytest.raises(ValueError, match="is packed for x86 processors"):
        load(tmp_path / "packed")


def test_another_family_is_refused(packed):
    with pytest.raises(ValueError, match="holds a tts model; turbo was asked for"):
        load(packed, "turbo")


def test_another_format_is_refused(spoilt):
    edit_marker(spoilt, format=FORMAT + 1, made_by="9.9", new_field=1)
    with pytest.raises(ValueError, match=rf"by chatterbox_opt 9\.9, in a format of its own \({FORMAT + 1}, here"):
        load(spoilt)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", json.dumps({"format": FORMAT})])
def test_a_broken_marker_is_refused(spoilt, content):
    (spoilt / MARKER).write_text(content)
    with pytest.raises(ValueError, match=r"packed\.json is broken .*pack the checkpoint again"):
        load(spoilt)


@pytest.mark.parametrize("name", NAMES.values())
def test_every_flipped_byte_is_noticed(spoilt, monkeypatch, name):
    monkeypatch.setattr(format_of_packed, "BLOCK", 1 << 12)  # many blocks, as at full size
    edit_marker(spoilt, files={n: format_of_packed.described(spoilt / n) for n in NAMES.values()})
    said(load(spoilt))
    size = (spoilt / name).stat().st_size
    for at in (20, size // 2, size - 1):
        flip(spoilt / name, at)
        with pytest.raises(ValueError, match=rf"{name} is not what was written: pack the checkpoint again"):
            load(spoilt)
        flip(spoilt / name, at)
    os.truncate(spoilt / name, size - 9)
    with pytest.raises(ValueError, match=rf"{name} is not what was written"):
        load(spoilt)
    (spoilt / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing"):
        load(spoilt)


def test_what_cannot_be_packed(folders, packed, tmp_path):
    with pytest.raises(ValueError, match="is packed already"):
        pack(packed, tmp_path / "again")
    with pytest.raises(OSError, match="not empty"):
        pack(folders["tts"], packed)
    with pytest.raises(ValueError, match="choose one of tts"):
        pack(folders["tts"], tmp_path / "vc", "vc")
    with pytest.raises(TypeError, match="unknown argument quantise"):
        pack(folders["tts"], tmp_path / "typo", quantise="int8")


# ---- whole or not at all -------------------------------------------------------------------------


def test_a_pack_that_fails_leaves_nothing(folders, tmp_path, monkeypatch):
    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("chatterbox_opt.packing.make.write_rest", full)
    with pytest.raises(OSError, match="no space left"):
        pack(folders["tts"], tmp_path / "packed")
    assert not list(tmp_path.iterdir())


def test_a_pack_that_is_killed_leaves_no_half_folder(folders, tmp_path):
    code = f"""
import os
from chatterbox_opt.packing import make
make.write_rest = lambda *_: os.kill(os.getpid(), 9)
make.pack({str(folders["tts"])!r}, {str(tmp_path / "packed")!r})
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".packed.")
    assert not (left / MARKER).exists()
    pack(folders["tts"], tmp_path / "packed")
    said(load(tmp_path / "packed"))


# ---- processors ----------------------------------------------------------------------------------

ELSEWHERE = """
import sys
from pathlib import Path
import torch
from chatterbox_opt import EngineOptions, OptimizedChatterboxTTS
from chatterbox_opt.packing import pack
from chatterbox_opt.weights.packed import NAMES

source, there, here = map(Path, sys.argv[1:])
assert torch.backends.cpu.get_cpu_capability() == "AVX2"
engine = EngineOptions(quantize="int8", dtype="bfloat16", s3gen_dtype="bfloat16")
pack(source, here, engine=engine)
for name in NAMES.values():
    print((there / name).read_bytes() == (here / name).read_bytes())
models = [OptimizedChatterboxTTS.from_local(source, "cpu", engine=engine)]
models += [OptimizedChatterboxTTS.from_local(folder, "cpu") for folder in (there, here)]
waves = [model.generate("Hello.", seed=1, max_new_tokens=12) for model in models]
print(all(torch.equal(wave, waves[0]) for wave in waves))
"""


@pytest.mark.skipif(not torch.backends.cpu.get_cpu_capability().startswith("AVX512"), reason="needs AVX512")
def test_what_one_processor_packed_is_right_on_another(folders, packed, tmp_path):
    """It holds integers, not a processor's own layout, and warns if another precision would be faster there."""
    words = [sys.executable, "-c", ELSEWHERE, folders["tts"], packed, tmp_path / "avx2"]
    env = os.environ | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["True"] * 4, done.stderr
    assert f"{packed} is packed in bfloat16; this processor is quicker in float16" in done.stderr


def test_a_load_does_not_import_torchs_compiler(packed):
    """That import takes a second."""
    code = f"""
import sys
from chatterbox_opt import OptimizedChatterboxTTS
OptimizedChatterboxTTS.from_local({str(packed)!r}, "cpu", enable_watermark=False)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_t3_it_was_made_from_may_be_named(folders, tmp_path):
    mine, other = tmp_path / "mine.safetensors", tmp_path / "other" / "mine.safetensors"
    shutil.copyfile(folders["tts"] / "t3_cfg.safetensors", mine)
    out = tmp_path / "packed"
    pack(folders["tts"], out, t3_file=mine)
    assert torch.equal(said(load(out, t3_file=mine)), said(load(out)))
    other.parent.mkdir()
    other.write_bytes((write_checkpoint(tmp_path / "seventh", "tts", seed=7) / "t3_cfg.safetensors").read_bytes())
    with pytest.raises(ValueError, match="its T3 made from mine"):
        load(out, t3_file=other)


def test_the_exact_preset_does_not_take_a_packed_two_step_decoder(folders, tmp_path):
    out = tmp_path / "packed"
    pack(folders["tts"], out, decoder=folders["turbo"] / "s3gen_meanflow.safetensors", use_mixed_precision=False)
    assert load(out, use_mixed_precision=False).config.flow.meanflow
    with pytest.raises(ValueError, match="packed with the two-step decoder, and preset='exact' means the model's own"):
        load(out, preset="exact")
    mine = shutil.copyfile(folders["tts"] / "s3gen.safetensors", tmp_path / "mine.safetensors")
    pack(folders["tts"], tmp_path / "of_ten", decoder=mine, use_mixed_precision=False)
    assert not load(tmp_path / "of_ten", preset="exact").config.flow.meanflow
