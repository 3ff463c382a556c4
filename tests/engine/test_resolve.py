"""What "auto" becomes on each device."""

import pytest
import torch

from chatterbox_opt import OptimizedChatterboxTTS, presets
from chatterbox_opt.config import tiny
from chatterbox_opt.engine import mps_bfloat16, own_rows
from chatterbox_opt.engine import resolve as module
from chatterbox_opt.engine.resolve import resolve, stored_dtype
from chatterbox_opt.options import EngineOptions
from chatterbox_opt.switches import switch_options

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("computes_bf16", "packs", "wanted"),
    [(True, True, "float16"), (True, False, "bfloat16"), (False, True, "float16"), (False, False, "float32")],
)
def test_a_processors_precision(monkeypatch, computes_bf16, packs, wanted):
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: computes_bf16)
    monkeypatch.setattr(module, "packs_float16", lambda device: packs)
    options = resolve(EngineOptions(), CPU)
    assert options.dtype == wanted
    assert options.s3gen_dtype == ("bfloat16" if computes_bf16 else "float32"), "nothing of it only reads weights"
    assert (options.compile, options.poll_every, options.kernels) == ("trace", 1, False)
    assert stored_dtype(options, CPU) == (torch.float32 if packs or not computes_bf16 else torch.bfloat16)
    assert resolve(options, CPU) == options


@pytest.mark.parametrize(("capability", "computes"), [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_bf16_units_that_torch_is_kept_from_do_not_count(monkeypatch, capability, computes):
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, probe, lambda: True, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert module.cpu_has_bf16() == module.cpu_has_amx() == computes


@pytest.mark.parametrize("amx", [True, False])
def test_amx_computes_in_bf16_and_bf16_units_are_not_amx(monkeypatch, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: not amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert module.cpu_has_bf16()
    assert module.cpu_has_amx() == amx


@pytest.mark.parametrize(
    ("capability", "wanted"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float32")]
)
def test_a_gpus_precision(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    options = resolve(EngineOptions(attention="sdpa"), GPU)
    assert (options.dtype, options.s3gen_dtype, options.compile) == (wanted, wanted, "cudagraph")
    assert stored_dtype(options, GPU) == getattr(torch, wanted)
    assert resolve(options, GPU) == options


def test_given_options_stay(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    asked = EngineOptions(dtype="float32", s3gen_dtype="float16", compile=None, attention="sdpa")
    for device in (CPU, GPU):
        options = resolve(asked, device)
        assert (options.dtype, options.s3gen_dtype, options.compile) == ("float32", "float16", None)


@pytest.mark.parametrize(
    ("asked", "device", "capability", "message"),
    [
        (dict(attention="flash"), CPU, (9, 0), "half precision, a CUDA device"),
        (dict(attention="flash"), GPU, (7, 5), "from Ampere on"),
        (dict(attention="flash", dtype="float32"), GPU, (9, 0), "this is float32"),
        (dict(quantize="int4"), GPU, (7, 5), "'int8' works"),
        (dict(flow_int8=True), GPU, (9, 0), "flow_int8 is of a CPU"),
        (dict(compile="cudagraph"), CPU, (9, 0), "needs a CUDA device"),
        (dict(compile="trace"), GPU, (9, 0), "needs a CPU device"),
    ],
)
def test_unsupported_options_are_refused(monkeypatch, asked, device, capability, message):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(module, "has_flash", lambda: True)
    with pytest.raises(ValueError, match=message):
        resolve(EngineOptions(**asked), device)


@pytest.fixture
def no_quantized_tensors(monkeypatch):
    """A torch that has removed what it announces to remove."""
    monkeypatch.delattr(torch, "_make_per_channel_quantized_tensor")


@pytest.mark.parametrize(
    ("asked", "named"), [(dict(quantize="int8"), "quantize='int8'"), (dict(flow_int8=True), "flow_int8")]
)
def test_int8_is_refused_where_torch_has_it_no_more(no_quantized_tensors, monkeypatch, asked, named):
    with pytest.raises(ValueError, match=f"{named} needs torch's quantized tensors .* leave it out"):
        resolve(EngineOptions(**asked), CPU)
    assert resolve(EngineOptions(quantize="int4"), CPU).quantize == "int4"
    assert resolve(EngineOptions(quantize="int8"), "mlx").quantize == "int8", "MLX has its own"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert resolve(EngineOptions(quantize="int8", attention="sdpa"), GPU).quantize == "int8"


def test_the_fast_preset_goes_on_where_torch_has_no_int8(no_quantized_tensors, monkeypatch, caplog):
    monkeypatch.setattr(presets, "LARGE_T3", 0)
    model = OptimizedChatterboxTTS.from_random(size="tiny", preset="fast", enable_watermark=False)
    assert model.options.quantize is None
    assert model.options.prompt_seconds == 5.0
    assert model.generate("Hello.", seed=0, max_new_tokens=6).numel()
    assert "goes on without int8" in caplog.text
    assert "overridden" not in caplog.text
    with pytest.raises(ValueError, match="quantized tensors"):
        OptimizedChatterboxTTS.from_random(size="tiny", preset="fast", quantize="int8")
    assert switch_options("mlx", tiny("tts"), preset="fast").quantize == "int8", "MLX has its own"


def test_wav_chunk_on_mps_fits_older_systems():
    """A convolution gives 120 positions per mel frame, and one; the vocoder's windows are exact at any size."""
    for asked in (EngineOptions(), EngineOptions.exact(), EngineOptions(wav_chunk=300)):
        options = resolve(asked, torch.device("mps"))
        assert 120 * options.wav_chunk + 1 <= 65_536
        assert options.wav_chunk <= asked.wav_chunk
    assert resolve(EngineOptions(), CPU).wav_chunk == EngineOptions().wav_chunk


@pytest.fixture
def mac(monkeypatch):
    """Imitates a Mac with that version of macOS, whose GPU is this CPU."""

    def imitate(version: tuple[int, int], device: str = "cpu") -> None:
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *least: version >= least)
        on_mps = mps_bfloat16.computes_bfloat16
        monkeypatch.setattr(mps_bfloat16, "computes_bfloat16", lambda asked: on_mps(torch.device(device)))
        mps_bfloat16.mps_has_bfloat16.cache_clear()

    yield imitate
    mps_bfloat16.mps_has_bfloat16.cache_clear()


@pytest.mark.parametrize(("version", "wanted"), [((13, 6), "float32"), ((14, 0), "bfloat16"), ((26, 1), "bfloat16")])
def test_t3_has_16_bits_on_mps_where_the_system_has_bfloat16(mac, version, wanted):
    mac(version)
    options = resolve(EngineOptions(), torch.device("mps"))
    assert (options.dtype, options.s3gen_dtype) == (wanted, "float32")
    assert resolve(options, torch.device("mps")) == options
    assert resolve(EngineOptions.exact(), torch.device("mps")).dtype == "float32"
    assert resolve(EngineOptions(dtype="float16"), torch.device("mps")).dtype == "float16"


def test_t3_stays_in_float32_on_mps_where_bfloat16_fails(mac, caplog):
    """It fails here because this torch has no MPS."""
    mac((15, 0), device="mps")
    assert resolve(EngineOptions(), torch.device("mps")).dtype == "float32"
    assert "bfloat16 fails on mps" in caplog.text


def test_t3_stays_in_float32_on_mps_where_bfloat16_is_wrong(mac, monkeypatch, caplog):
    attend = own_rows.attend

    def wrong(q, keys, values):
        return attend(q, keys, values if q.dtype == torch.float32 else values.flip(-1))

    monkeypatch.setattr(own_rows, "attend", wrong)
    mac((15, 0))
    assert resolve(EngineOptions(), torch.device("mps")).dtype == "float32"
    assert "is off by" in caplog.text


def test_the_trial_of_bfloat16_draws_from_no_generator():
    before = torch.random.get_rng_state()
    assert mps_bfloat16.computes_bfloat16(CPU)
    assert torch.equal(torch.random.get_rng_state(), before)
