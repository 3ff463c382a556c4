"""MelRunner: padding, batches and precision change nothing, or as much as they say."""

import pytest
import torch
from flow_pairs import pair, random_flow, tokens, voice
from replay import Replay, cast, crossings, no_gpu

from chatterbox_opt.config import MODELS, tiny
from chatterbox_opt.engine import mel as mel_engine
from chatterbox_opt.engine.mel import LONGEST, MelRunner, sizes
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.models.conformer import HalfLinear, WindowConv
from chatterbox_opt.models.flow import Flow
from chatterbox_opt.options import EngineOptions

CPU = torch.device("cpu")
EXACT = EngineOptions.exact()


def noise(seed=0):
    return RequestNoise(CPU, seed)


@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize("n", [1, 2, 37])
def test_upstreams_mel_from_the_same_seed(family, n):
    upstream, ours, config = pair(family)
    ids = tokens(n)
    torch.manual_seed(5)
    tail = torch.randn(1, 80, 2 * n) if config.meanflow else None
    wanted, _ = upstream.inference(
        token=ids[None], token_len=torch.tensor([n]), finalize=True, n_timesteps=config.default_steps,
        noised_mels=tail, meanflow=config.meanflow, **voice(),
    )
    after = torch.rand(2)
    torch.manual_seed(5)
    (got,) = MelRunner(ours, EXACT).render([ids], [voice()], [RequestNoise(CPU, None)])
    assert torch.equal(torch.rand(2), after)
    assert got.shape == (80, 2 * n)
    assert (got - wanted[0]).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_a_row_in_a_padded_batch_is_the_row_alone(family):
    runner = MelRunner(random_flow(family), EXACT)
    rows = [runner._row(tokens(n, n), voice(25 + n % 3, n), noise(n)) for n in (3, 40, 17, 1)]
    together = runner._solve(rows, 3)
    for row, got in zip(rows, together):
        (alone,) = runner._solve([row], 3)
        assert got.shape == alone.shape
        assert (got - alone).abs().max() < 1e-4 * alone.abs().max()


@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_captured_solve_takes_nothing_from_the_host(family, dtype, monkeypatch):
    """Which would end the capture."""
    monkeypatch.setattr(HalfLinear, "to", cast)
    monkeypatch.setattr(WindowConv, "to", cast)
    with no_gpu():
        runner = MelRunner(Flow(tiny(family).flow), EngineOptions.exact(s3gen_dtype=dtype))
        ids, xvector = torch.zeros(2, 30, dtype=torch.long), torch.zeros(2, 192)
        inputs = ids, torch.zeros(2, 60, 80), torch.zeros(2, 60, 80), xvector, torch.full((2,), 30)
        assert crossings(lambda: runner._forward(*inputs, full=False, steps=2)) == []


@pytest.mark.parametrize("step", [1, 50, 64])
def test_captured_sizes_reach_every_length_and_waste_little(step):
    ladder = sizes(step)
    assert ladder[-1] >= LONGEST
    assert all(size % 2 == 0 for size in ladder)
    gaps = [b - a for a, b in zip((0, *ladder), ladder)]
    assert all(gap <= max(step + 1, size / 8) for gap, size in zip(gaps, ladder))


@torch.inference_mode()
def test_captured_batches_are_each_row_alone(monkeypatch):
    monkeypatch.setattr(mel_engine, "sizes", lambda step: (60, 100, 160))
    flow = random_flow()
    runner = MelRunner(flow, EXACT.replace(mel_bucket=50))
    runner.captured = Replay()
    runner.warmup(4, steps=3)
    ready = set(runner.captured.keys)
    assert ready == {(rows, size, 3) for rows in (1, 2, 4) for size in (60, 100, 160)}
    plain = MelRunner(flow, EXACT)
    # three rows in a graph of four, twice, then what was not foreseen: more rows, more frames, other steps
    for lengths, steps in (((3, 12, 1), 3), ((20, 21, 19), 3), ((5,) * 7, 3), ((90,), 3), ((8,), 2)):
        rows = [runner._row(tokens(n, n), voice(25, n), noise(n)) for n in lengths]
        for row, got in zip(rows, runner._solve(rows, steps)):
            (alone,) = plain._solve([row], steps)
            assert got.shape == alone.shape
            assert (got - alone).abs().max() < 1e-4 * alone.abs().max()
    assert set(runner.captured.keys) == ready, "nothing may be captured in the middle of a request"


@pytest.mark.parametrize("bucket", [2, 50, 64])
def test_buckets_change_nothing(bucket):
    flow = random_flow()
    (plain,) = MelRunner(flow, EXACT).render([tokens(23)], [voice()], [noise()], 3)
    (padded,) = MelRunner(flow, EXACT.replace(mel_bucket=bucket)).render([tokens(23)], [voice()], [noise()], 3)
    assert (plain - padded).abs().max() < 1e-4 * plain.abs().max()


def test_odd_prompts():
    """A prompt whose mel has one frame more than its tokens: the output starts behind the mel."""
    v = voice()
    v["prompt_feat"] = torch.cat([v["prompt_feat"], torch.zeros(1, 1, 80)], 1)
    (mel,) = MelRunner(random_flow(), EXACT).render([tokens(10)], [v], [noise()], 2)
    assert mel.shape == (80, 19)
    v = voice()
    v["prompt_token"] = v["prompt_token"].float()  # as upstream leaves a voice it has used
    (again,) = MelRunner(random_flow(), EXACT).render([tokens(10)], [v], [noise()], 2)
    (plain,) = MelRunner(random_flow(), EXACT).render([tokens(10)], [voice()], [noise()], 2)
    assert torch.equal(again, plain)


def snr(got, wanted):
    return float(10 * torch.log10(wanted.square().mean() / (got - wanted).square().mean()))


def test_bf16_is_close():
    (wanted,) = MelRunner(random_flow(), EXACT).render([tokens(30)], [voice()], [noise()])
    (got,) = MelRunner(random_flow(), EXACT.replace(s3gen_dtype="bfloat16")).render([tokens(30)], [voice()], [noise()])
    assert got.dtype == torch.float32
    assert snr(got, wanted) > 30
    assert not torch.equal(got, wanted)


@pytest.mark.slow
def test_bf16_is_close_at_full_size():
    def run(options):
        torch.manual_seed(0)
        flow = random_flow(config=MODELS["tts"].flow)
        return MelRunner(flow, options).render([tokens(25)], [voice()], [noise()], 4)[0]

    assert snr(run(EXACT.replace(s3gen_dtype="bfloat16")), run(EXACT)) > 30


@pytest.mark.parametrize(
    "change", [dict(cfg_off_last=2), dict(prompt_seconds=1.0), dict(cfm_schedule="sway")], ids=lambda c: next(iter(c))
)
def test_approximate_options_change_the_mel_and_keep_its_shape(change):
    v = voice(50)
    (wanted,) = MelRunner(random_flow(), EXACT).render([tokens(20)], [v], [noise()], 6)
    (got,) = MelRunner(random_flow(), EXACT.replace(**change)).render([tokens(20)], [v], [noise()], 6)
    assert got.shape == wanted.shape
    assert torch.isfinite(got).all()
    assert not torch.equal(got, wanted)


def test_bad_rows_are_refused():
    runner = MelRunner(random_flow(), EXACT)
    for bad in (torch.zeros(0, dtype=torch.long), torch.tensor([6561]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="speech tokens"):
            runner.render([tokens(3), bad], [voice()] * 2, [noise()] * 2)
    assert runner.render([], [], []) == []


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_a_solve_needs_a_step(steps):
    with pytest.raises(ValueError, match="step"):
        MelRunner(random_flow(), EXACT).render([tokens(3)], [voice()], [noise()], steps)


@torch.inference_mode()
def test_the_captured_solve_never_asks_the_host():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert not any(bad in str(func) for bad in ("_local_scalar_dense", "nonzero", "item")), str(func)
            return func(*args, **(kwargs or {}))

    runner = MelRunner(random_flow(), EXACT)
    row = runner._row(tokens(20), voice(), noise())
    runner._solve([row], 3)  # tables
    inputs = batch_of_one(row)
    with Watch():
        runner._forward(*inputs, full=False, steps=3)


def batch_of_one(row):
    prompt = torch.nn.functional.pad(row["prompt"], (0, 0, 0, len(row["noise"]) - len(row["prompt"])))
    return [row["ids"][None], prompt[None], row["noise"][None], row["xvector"], torch.tensor([len(row["ids"])])]


@torch.inference_mode()
def test_a_captured_solve_reads_only_what_the_runner_holds():
    """A graph replays addresses: a table that somebody else may drop would be read after it was freed."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def places(tree):
        return {t.untyped_storage().data_ptr() for t in tree_leaves(tree) if isinstance(t, torch.Tensor)}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            strange = places((args, kwargs)) - held
            assert not strange, f"{func} reads what nobody holds"
            out = func(*args, **(kwargs or {}))
            held.update(places(out))
            alive.append(out)  # or a later tensor could stand where this one stood
            return out

    runner = MelRunner(random_flow(), EXACT)
    inputs = batch_of_one(runner._row(tokens(20), voice(), noise()))
    runner._forward(*inputs, full=False, steps=3)  # as a warm-up before the capture
    held = places([inputs, list(runner.flow.parameters()), runner.schedule(3)])
    alive = []
    with Watch():
        runner._forward(*inputs, full=False, steps=3)


@pytest.mark.slow
def test_a_long_utterance_stays_in_memory():
    """4096 tokens, 164 s: the position scores alone would take 9 GB at once."""
    config = MODELS["tts"].flow
    import dataclasses

    flow = Flow(dataclasses.replace(config, layers=1, up_layers=1, mid_blocks=1, block_layers=1))
    flow.eval().requires_grad_(False)
    (mel,) = MelRunner(flow, EXACT).render([tokens(4096)], [voice()], [noise()], 1)
    assert mel.shape == (80, 8192)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_graph_is_eager(family):
    flow, gpu = random_flow(family).cuda(), torch.device("cuda")
    sizes = (30, 7, 33, 30)
    results = []
    for options in (EXACT, EXACT.replace(compile="cudagraph", mel_bucket=50)):
        runner = MelRunner(flow, options)
        runner.warmup(4)
        noises = [RequestNoise(gpu, i) for i in range(4)]
        results.append(runner.render([tokens(n, n) for n in sizes], [voice(25, n) for n in sizes], noises))
    for eager, graph in zip(*results):
        assert (eager - graph).abs().max() < 1e-3 * eager.abs().max()
