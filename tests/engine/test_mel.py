"""MelRunner: padding and batches change nothing, precision as much as documented."""

import copy

import pytest
import torch
from flow_pairs import pair, random_flow, tokens, voice
from replay import Replay, Watch, addresses, cast, crossings, no_gpu, waits_for_the_device

from chatterbox_opt.config import MODELS, tiny
from chatterbox_opt.engine import flow_graphs, mel
from chatterbox_opt.engine.flow_graphs import LONGEST, captured_size, sizes
from chatterbox_opt.engine.graphs import bucket
from chatterbox_opt.engine.mel import MelJob, MelRunner
from chatterbox_opt.engine.noise import RequestNoise
from chatterbox_opt.models.conformer import HalfLinear, WindowConv
from chatterbox_opt.models.flow import Flow
from chatterbox_opt.options import EngineOptions

pytestmark = pytest.mark.kernels
CPU = torch.device("cpu")
EXACT = EngineOptions.exact()


def noise(seed=0):
    return RequestNoise(CPU, seed)


def render(runner, rows, steps=None, **how):
    """(tokens, voice, noise) each."""
    return runner.render([MelJob(*row) for row in rows], steps, **how)


def rendered(options=EXACT, n=20, steps=None, v=None, flow=None):
    """Returns one utterance's mel, by a runner with these options."""
    return render(MelRunner(flow or random_flow(), options), [(tokens(n), v or voice(), noise())], steps)[0]


def solved(runner, rows, steps=None):
    solve = runner.begin(rows, steps)
    while not solve.done:
        runner.advance(solve)
    return solve.mels()


def row(runner, n, prompt=25):
    return runner.row(MelJob(tokens(n, n), voice(prompt, n), noise(n)))


def replaying(flow, **changes):
    """A runner whose encodings and steps are captured, as on a GPU."""
    runner = MelRunner(flow, EXACT.replace(**changes))
    runner.graphs.captured = Replay()
    return runner


def close(got, wanted, bound=1e-4):
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < bound * wanted.abs().max()


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
    borrowed = RequestNoise(CPU, None)
    (got,) = render(MelRunner(ours, EXACT), [(ids, voice(), borrowed)])
    borrowed.give_back()
    assert torch.equal(torch.rand(2), after)
    assert got.shape == (80, 2 * n)
    assert (got - wanted[0]).abs().max() < 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_a_row_of_a_padded_batch_equals_the_row_alone(family):
    runner = MelRunner(random_flow(family), EXACT)
    rows = [row(runner, n, 25 + n % 3) for n in (3, 40, 17, 1)]
    for mine, got in zip(rows, solved(runner, rows, 3)):
        close(got, solved(runner, [mine], 3)[0])


@pytest.mark.parametrize("family", ["tts", "turbo"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_captured_step_takes_nothing_from_the_host(family, dtype, monkeypatch):
    """Copies from the host would end the capture."""
    monkeypatch.setattr(HalfLinear, "to", cast)
    monkeypatch.setattr(WindowConv, "to", cast)
    with no_gpu():
        runner = MelRunner(Flow(tiny(family).flow), EngineOptions.exact(s3gen_dtype=dtype))
        ids, xvector = torch.zeros(2, 30, dtype=torch.long), torch.zeros(2, 192)
        inputs = ids, torch.zeros(2, 60, 80), xvector, torch.full((2,), 30)
        assert crossings(lambda: runner.encode(*inputs, full=False)) == []
        (span, times), known = runner.schedule(2), runner.encode(*inputs, full=False)
        x, dt = torch.zeros(2, 60, 80), span[1] - span[0]
        for unguided in (False, True):
            assert crossings(lambda off=unguided: runner.flow.euler(x, times[0], dt, *known, off)) == []


@pytest.mark.parametrize("step", [1, 50, 64])
def test_captured_sizes_reach_every_length_and_waste_little(step):
    ladder = sizes(step)
    assert ladder[-1] >= LONGEST
    assert all(size % 2 == 0 for size in ladder)
    gaps = [b - a for a, b in zip((0, *ladder), ladder)]
    assert all(gap <= max(step + 1, size / 8) for gap, size in zip(gaps, ladder))


@pytest.mark.parametrize("changes", [{}, dict(cfg_off_last=1)], ids=["guided", "unguided at the end"])
@torch.inference_mode()
def test_rows_of_captured_batches_equal_rows_alone(monkeypatch, changes):
    monkeypatch.setattr(flow_graphs, "sizes", lambda step: (60, 100, 160))
    flow = random_flow()
    runner, plain = replaying(flow, mel_bucket=50, **changes), MelRunner(flow, EXACT.replace(**changes))
    runner.warmup(4)
    ready, shapes = set(runner.graphs.captured.keys), [(n, size) for n in (1, 2, 4) for size in (60, 100, 160)]
    kinds = [("encode",), ("step", False), *([("step", True)] if changes else [])]
    assert ready == {(kind, *shape, *off) for kind, *off in kinds for shape in shapes}
    assert ready == set(runner.graphs.planned(4))
    # three rows in a graph of four, then other numbers of steps, then what no graph is long enough for
    for lengths, steps in (((3, 12, 1), 3), ((20, 21, 19), 1), ((20,), 6), ((8,), 2), ((90,), 3), ((3, 90), 3)):
        rows = [row(runner, n) for n in lengths]
        for mine, got in zip(rows, solved(runner, rows, steps)):
            close(got, solved(plain, [mine], steps)[0])
    assert set(runner.graphs.captured.keys) == ready, "what a warm-up captured is enough, whatever the steps"
    rows = [row(runner, 5) for _ in range(7)]
    for mine, got in zip(rows, solved(runner, rows, 3)):
        close(got, solved(plain, [mine], 3)[0])
    new = set(runner.graphs.captured.keys) - ready
    assert {key[1:3] for key in new} == {(8, 60)}, "what was not foreseen is captured at its first use"


@pytest.mark.parametrize("family", ["tts", "turbo"])
@torch.inference_mode()
def test_solves_that_take_turns_in_one_graph_do_not_mix(family):
    """Solves of one shape, begun and advanced in any order, with several numbers of steps; one is dropped."""
    flow = random_flow(family)
    runner, plain = replaying(flow, mel_bucket=50), MelRunner(flow, EXACT)
    rows = [[row(runner, n) for n in lengths] for lengths in ((20, 11), (15, 22), (17, 18), (21, 12))]
    counts = (4, 2, 5, 3)
    a, b = (runner.begin(rows[i], counts[i]) for i in (0, 1))
    runner.advance(a)
    runner.advance(b)
    c, given_up = runner.begin(rows[2], counts[2]), runner.begin(rows[3], counts[3])
    runner.advance(given_up)
    for solve in (c, a, b, c, a, c, a, c, c):
        runner.advance(solve)
    assert len({s.key for s in (a, b, c, given_up)}) == 1
    assert all(s.done for s in (a, b, c))
    for solve, own, steps in zip((a, b, c), rows, counts):
        for mine, got in zip(own, solve.mels()):
            close(got, solved(plain, [mine], steps)[0])


@torch.inference_mode()
def test_solves_of_other_shapes_come_between_an_encoding_and_its_steps():
    """Graphs share memory: the inputs of one shape's steps must survive replays of all other graphs."""
    flow = random_flow()
    runner, plain = replaying(flow, mel_bucket=50), MelRunner(flow, EXACT)
    rows = [row(runner, n) for n in (20, 60)]
    a, b = (runner.begin([mine], 3) for mine in rows)
    assert a.key != b.key
    for solve in (a, b, a, b, b, a):
        runner.advance(solve)
    for solve, mine in zip((a, b), rows):
        close(solve.mels()[0], solved(plain, [mine], 3)[0])


@pytest.mark.parametrize("step", [2, 48, 64])
def test_every_group_of_rows_has_a_graph_of_the_warm_up(step, monkeypatch):
    """Groups are bounded by what is captured, which memory bounds, and not by the lengths of their rows."""
    runner, ready = replaying(random_flow(), mel_bucket=step), set()
    monkeypatch.setattr(runner.graphs, "capture", ready.add)
    runner.warmup(16)
    assert ready
    chance = torch.Generator().manual_seed(step)
    mixed = torch.randint(2, LONGEST // 2, (40,), generator=chance) * 2
    for frames in ([750] * 16, [700] * 16, [400] * 16, [1500] * 5, [LONGEST] * 3, mixed.tolist()):
        groups = runner.groups(frames)
        assert sorted(i for group in groups for i in group) == list(range(len(frames)))
        for group in groups:
            key = runner.graphs.key(len(group), max(frames[i] for i in group))
            assert key in ready
            assert key[0] >= len(group)
    assert len(runner.groups([750] * 16)) <= 2
    for rows in range(2, 20):
        for size in sizes(step):
            assert runner.fits(rows, size) == ((bucket(rows), size) in ready)
    assert runner.graphs.key(1, LONGEST * 2) is None, "what is longer runs as it comes"
    assert captured_size(LONGEST * 2, step) is None


def test_without_graphs_a_processor_renders_one_by_one():
    runner = MelRunner(random_flow(), EXACT)
    assert runner.groups([30, 10, 20]) == [[1], [2], [0]]
    runner.graphs.capture((1, 100))
    runner.warmup(4)
    assert not runner.graphs._held


def test_a_render_can_be_stopped_between_two_steps():
    runner, steps, looks = MelRunner(random_flow(), EXACT), [], []
    hook = runner.flow.decoder.estimator.register_forward_pre_hook(lambda *_: steps.append(1))

    def check():
        looks.append(len(steps))
        if len(looks) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(runner, [(tokens(5), voice(), noise())], 6, check=check)
    assert looks == [0, 1, 2]
    looks.append(None)
    assert render(runner, [(tokens(5), voice(), noise())], 6, check=check)[0].isfinite().all()
    hook.remove()


@pytest.mark.parametrize("bucket", [2, 50, 64])
def test_buckets_change_nothing(bucket):
    flow = random_flow()
    close(rendered(EXACT.replace(mel_bucket=bucket), 23, 3, flow=flow), rendered(EXACT, 23, 3, flow=flow))


def test_odd_prompts():
    """With one frame more than its tokens in the prompt's mel, the output starts after the mel."""
    v = voice()
    v["prompt_feat"] = torch.cat([v["prompt_feat"], torch.zeros(1, 1, 80)], 1)
    assert rendered(n=10, steps=2, v=v).shape == (80, 19)
    v = voice()
    v["prompt_token"] = v["prompt_token"].float()  # as upstream leaves a voice it has used
    assert torch.equal(rendered(n=10, steps=2, v=v), rendered(n=10, steps=2))


def snr(got, wanted):
    return float(10 * torch.log10(wanted.square().mean() / (got - wanted).square().mean()))


def test_in_bf16_a_processor_renders_a_small_flow_in_few_sizes(monkeypatch):
    """As products in bf16 are prepared for each size. Of that the mel keeps what it keeps of the rounding to bf16."""
    options, flow = EXACT.replace(s3gen_dtype="bfloat16"), random_flow()
    runner = MelRunner(copy.deepcopy(flow), options)
    padded = {n: rendered(options, n, 3, flow=copy.deepcopy(flow)) for n in (11, 30)}
    lengths = range(20, 55, 5)
    assert {runner.begin([row(runner, n)]).size for n in lengths} == {96, 128, 160}
    monkeypatch.setattr(mel, "SMALL", 1000)
    runner = MelRunner(copy.deepcopy(flow), options)
    sizes = {runner.begin([row(runner, n)]).size for n in lengths}
    assert len(sizes) == len(lengths), "a large flow costs more than that"
    for n, got in padded.items():
        assert snr(got, rendered(options, n, 3, flow=copy.deepcopy(flow))) > 30
        assert snr(got, rendered(n=n, steps=3, flow=flow)) > 30


def test_bf16_is_close():
    wanted, got = rendered(n=30), rendered(EXACT.replace(s3gen_dtype="bfloat16"), 30)
    assert got.dtype == torch.float32
    assert snr(got, wanted) > 30
    assert not torch.equal(got, wanted)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_int8_blocks_are_close(family, dtype):
    wanted = rendered(n=30, flow=random_flow(family))
    got = rendered(EXACT.replace(flow_int8=True, s3gen_dtype=dtype), 30, flow=random_flow(family))
    assert got.dtype == torch.float32
    assert 25 < snr(got, wanted) < 60, "it is quantised, and hardly to be told"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_int8_flow_serves_two_models(dtype):
    """As that of a server does, which converts recordings too."""
    flow, options = random_flow(), EXACT.replace(flow_int8=True, s3gen_dtype=dtype)
    first = rendered(options, 30, flow=flow)
    assert torch.equal(rendered(options, 30, flow=flow), first)


@torch.inference_mode()
def test_int8_rows_of_a_padded_batch_equal_rows_alone():
    runner = MelRunner(random_flow(), EXACT.replace(flow_int8=True))
    rows = [row(runner, n) for n in (3, 30, 17)]
    for mine, got in zip(rows, solved(runner, rows, 3)):
        assert snr(got, solved(runner, [mine], 3)[0]) > 30


@pytest.mark.slow
def test_bf16_is_close_at_full_size():
    def run(options):
        torch.manual_seed(0)
        return rendered(options, 25, 4, flow=random_flow(config=MODELS["tts"].flow))

    assert snr(run(EXACT.replace(s3gen_dtype="bfloat16")), run(EXACT)) > 30


@pytest.mark.parametrize(
    "change", [dict(cfg_off_last=2), dict(prompt_seconds=1.0), dict(cfm_schedule="sway")], ids=lambda c: next(iter(c))
)
def test_approximate_options_change_the_mel_and_keep_its_shape(change):
    v = voice(50)
    wanted, got = (rendered(options, steps=6, v=v) for options in (EXACT, EXACT.replace(**change)))
    assert got.shape == wanted.shape
    assert torch.isfinite(got).all()
    assert not torch.equal(got, wanted)


def test_bad_rows_are_refused():
    runner = MelRunner(random_flow(), EXACT)
    for bad in (torch.zeros(0, dtype=torch.long), torch.tensor([6561]), torch.tensor([-1])):
        with pytest.raises(ValueError, match="speech tokens"):
            render(runner, [(ids, voice(), noise()) for ids in (tokens(3), bad)])
        with pytest.raises(ValueError, match="speech tokens"):
            runner.row(MelJob(bad, voice(), noise()))
    assert runner.render([]) == []


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_a_solve_needs_a_step(steps):
    with pytest.raises(ValueError, match="step"):
        rendered(n=3, steps=steps)


@torch.inference_mode()
def test_the_captured_flow_does_not_wait_for_the_device():
    runs, _ = recorded()
    for run in runs:
        assert waits_for_the_device(run) == []


def recorded():
    """Returns what is captured for a shape, the tables made for it, and all memory that it may read."""
    runner = replaying(random_flow(), cfg_off_last=1)
    runner.graphs.capture(key := (2, 90))
    held = runner.graphs._held[key]
    runs = [runner.graphs._encode_of(held), *(runner.graphs._step_of(held, off) for off in (False, True))]
    return runs, [vars(held), list(runner.flow.parameters()), runner]


@torch.inference_mode()
def test_the_captured_flow_reads_only_memory_that_the_runner_holds():
    """A graph replays addresses: a table that other code may drop could be read after it was freed."""
    def see(func, given, out):
        assert not addresses(given) - held, f"{func} reads what nobody holds"
        held.update(addresses(out))
        alive.append(out)  # or a later tensor could stand where this one stood

    runs, kept = recorded()
    held, alive = addresses(kept), []
    with Watch(see):
        for run in runs:
            run()


@pytest.mark.slow
def test_a_long_utterance_stays_in_memory():
    """4096 tokens, 164 s: the position scores alone would take 9 GB at once."""
    config = MODELS["tts"].flow
    import dataclasses

    flow = Flow(dataclasses.replace(config, layers=1, up_layers=1, mid_blocks=1, block_layers=1))
    flow.eval().requires_grad_(False)
    assert rendered(n=4096, steps=1, flow=flow).shape == (80, 8192)


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_graph_equals_eager(family):
    flow, gpu = random_flow(family).cuda(), torch.device("cuda")
    lengths = (30, 7, 33, 30)
    results = []
    for options in (EXACT, EXACT.replace(compile="cudagraph", mel_bucket=50)):
        runner = MelRunner(flow, options)
        runner.warmup(4)
        rows = [(tokens(n, n), voice(25, n), RequestNoise(gpu, i)) for i, n in enumerate(lengths)]
        results.append(render(runner, rows) + render(runner, rows, 3))
    for eager, graph in zip(*results):
        assert (eager - graph).abs().max() < 1e-3 * eager.abs().max()
