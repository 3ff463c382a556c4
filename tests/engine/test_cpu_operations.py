"""The operations for CPUs against the networks' default operations."""

import pytest
import torch
from flow_pairs import random_flow
from hift_pairs import some_mel
from t3_pairs import random_t3
from torch.nn.functional import scaled_dot_product_attention as attention

from chatterbox_opt.config import tiny
from chatterbox_opt.engine import operations
from chatterbox_opt.engine.half import in_half
from chatterbox_opt.engine.kernels import cpu
from chatterbox_opt.engine.operations import flow_operations, t3_operations, vocoder_operations
from chatterbox_opt.models import conformer, estimator, layers
from chatterbox_opt.models.flow import FLOW_REFERENCE
from chatterbox_opt.models.hift import VOCODER_REFERENCE, Hift
from chatterbox_opt.models.llama import RMSNorm
from chatterbox_opt.options import EngineOptions

pytestmark = pytest.mark.kernels
EXACT = EngineOptions.exact()


def close(got, wanted, tolerance=1e-5):
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


@torch.inference_mode()
def test_norms_are_the_networks_norms():
    norm, linear, x = RMSNorm(70, 1e-5), torch.nn.Linear(70, 24), 3 * torch.randn(2, 5, 70) + 1
    norm.weight.data = torch.randn(70)
    close(cpu.rms_norm(x, norm), norm(x))
    assert not cpu.rms_norm(torch.zeros(1, 70), norm).any()
    for act in (None, layers.swiglu):
        close(cpu.rms_norm_linear(x, norm, linear, act), layers.norm_linear(x, norm, linear, act))


@pytest.mark.filterwarnings("ignore")
@torch.inference_mode()
def test_a_traced_norm_does_not_compute_its_constants():
    norm, x = RMSNorm(16, 1e-5).requires_grad_(False), torch.randn(2, 1, 16)
    cpu.rms_norm(x, norm)  # as the engine runs a step before it traces one
    graph = torch.jit.trace(lambda x: cpu.rms_norm(x, norm), x).graph
    assert {node.kind() for node in graph.nodes() if node.kind().startswith("aten::")} == {
        "aten::linalg_vector_norm", "aten::mul", "aten::hypot", "aten::div"
    }


@torch.inference_mode()
def test_mish_is_as_precise_as_torchs():
    x = torch.cat([torch.linspace(-30, 30, 60_001), torch.tensor([-1e38, -200.0, 44.0, 89.0, 200.0, 1e38])])
    before, wanted = x.clone(), torch.nn.functional.mish(x.double())
    errors = [(f(x) - wanted).abs() / wanted.abs().clamp(min=1e-30) for f in (cpu.mish, torch.nn.functional.mish)]
    assert errors[0].max() <= 2 * errors[1].max() < 2e-6
    assert torch.equal(x, before)
    assert cpu.mish(torch.tensor([torch.nan, torch.inf, -torch.inf])).isnan().tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_rotation_is_the_networks_rotation(dtype):
    config, tolerance = tiny("tts").t3, 1e-2 if dtype == torch.bfloat16 else 1e-6
    x = torch.randn(2, 7, 3, config.head_dim).to(dtype)
    rope = layers.rope_table(config, 40, torch.device("cpu"))[torch.tensor([[3, 0, 39, 1, 1, 20, 5]])]
    wanted = layers.rotate(x, rope)
    close(cpu.rotate(x, rope), wanted, tolerance)
    last = x[:, -1:].clone()
    cpu.rotate_(last, rope[:, -1:])
    close(last, wanted[:, -1:], tolerance)


def test_attention_takes_a_bias_with_any_strides():
    q, k, v = (torch.randn(2, 3, 9, 16) for _ in range(3))
    bias = conformer.distance_scores(q, torch.randn(3, 16, 17), 9)
    assert not bias.is_contiguous()
    close(cpu.attend_biased(q, k, v, bias, 0.3), conformer.attend_biased(q, k, v, bias, 0.3))


@pytest.mark.parametrize("scores", [2**20, 64 * 50, 1])  # all at once, in blocks that do not come out even, one by one
def test_attention_by_products_is_attention(scores, monkeypatch):
    monkeypatch.setattr(cpu, "SCORES", scores)
    q, k, v = (2 * torch.randn(2, 3, 90, 16) for _ in range(3))
    close(cpu.attention_by_products(q, k, v), attention(q, k, v))
    mask = torch.zeros(2, 1, 1, 90)
    mask[1, ..., 50:] = -torch.inf
    close(cpu.attention_by_products(q, k, v, mask), attention(q, k, v, attn_mask=mask))


def test_attention_by_products_keeps_bf16():
    """Scores are rounded to bf16 before the softmax, unlike in the fused kernel: 40 dB remain."""
    q, k, v = (torch.randn(2, 8, 200, 64) for _ in range(3))
    wanted = attention(q, k, v)
    got = cpu.attention_by_products(*(t.bfloat16() for t in (q, k, v)))
    assert got.dtype == torch.bfloat16
    assert 10 * torch.log10(wanted.square().mean() / (got.float() - wanted).square().mean()) > 40


@torch.inference_mode()
def test_attention_of_the_flow_with_and_without_a_mask():
    qkv, mask = torch.randn(2, 30, 3 * 2 * 16).bfloat16(), torch.zeros(2, 1, 1, 30, dtype=torch.bfloat16)
    mask[1, ..., 20:] = -torch.inf
    for given in (None, mask):
        close(cpu.attend_all(qkv, given, 2), estimator.attend_all(qkv, given, 2), 2e-2)


@pytest.mark.parametrize(
    ("dtype", "amx", "chosen"),
    [
        (torch.bfloat16, False, cpu.attend_all),
        (torch.bfloat16, True, estimator.attend_all),
        (torch.float32, False, estimator.attend_all),
    ],
)
def test_attention_suits_the_units_of_the_processor(dtype, amx, chosen, monkeypatch):
    monkeypatch.setattr(operations, "cpu_has_amx", lambda: amx)
    flow = random_flow()
    in_half(flow, dtype)
    assert flow_operations(flow, EXACT).attend_all is chosen


@torch.inference_mode()
def test_networks_with_their_operations_are_the_networks_without():
    t3, flow, hift = random_t3("tts"), random_flow(), Hift(tiny("tts").hift).eval()
    x, positions = torch.randn(2, 9, t3.config.dim), torch.arange(9)[None]
    close(t3(x, positions, None, t3_operations(t3, EXACT)), t3(x, positions))
    tokens = torch.randint(0, 6561, (2, 31))
    ops = flow_operations(flow, EXACT)
    assert ops != FLOW_REFERENCE
    close(flow.encode(tokens, None, ops), flow.encode(tokens))
    assert vocoder_operations(hift, EXACT) == VOCODER_REFERENCE
    ops = vocoder_operations(hift, EXACT.replace(short_convs=True))
    mel, harmonics = some_mel(20)[None], hift.cfg.harmonics + 1
    noise = torch.rand(1, harmonics, 1), torch.randn(1, harmonics, 480 * 20)
    close(hift(mel, *noise, ops), hift(mel, *noise), 1e-4)


def test_torch_compile_is_left_the_reference():
    """It generates its own operations."""
    assert t3_operations(random_t3("tts"), EXACT.replace(compile="reduce-overhead")) == layers.T3_REFERENCE
