"""The order of calls to a GPU: devices, streams, pools and generators, noted by an imitation of torch.cuda."""

from __future__ import annotations

import logging
from itertools import count

import pytest
import torch
from fake_cuda import Stream as fake_stream
from fake_cuda import fake_cuda  # noqa: F401
from replay import Watch, cast, crossings, no_gpu
from token_runs import EXACT, request

from chatterbox_opt.config import tiny
from chatterbox_opt.engine import noise, recording
from chatterbox_opt.engine.agreement import tensors
from chatterbox_opt.engine.cache import StaticKVCache, empty_kv
from chatterbox_opt.engine.driver import Driver
from chatterbox_opt.engine.graphs import WARM_UPS, Captured, Trial
from chatterbox_opt.engine.mel import MelRunner
from chatterbox_opt.engine.prefix import Prefix
from chatterbox_opt.engine.request import Call
from chatterbox_opt.engine.slots import Slots
from chatterbox_opt.engine.tokens import TokenRunner
from chatterbox_opt.engine.transfers import upload
from chatterbox_opt.engine.wav import WavRunner
from chatterbox_opt.models.flow import Flow
from chatterbox_opt.models.hift import Hift
from chatterbox_opt.models.t3 import T3

GPUS = [torch.device("cuda:0"), torch.device("cuda:1")]


def result():
    return torch.ones(3)


def test_recordings_of_a_model_share_a_stream_and_a_pool_and_two_devices_share_nothing(fake_cuda):  # noqa: F811
    models = [Captured("cudagraph", device) for device in GPUS]
    for key in ("long", "short"):
        for made in models:
            made.prepare(key, result)
    recorded = [note[1:] for note in fake_cuda.notes if note[0] == "record"]
    assert [index for index, *_ in recorded] == [0, 1, 0, 1], "each on its own device, whatever is current"
    assert recorded[0] == recorded[2]
    assert recorded[1] == recorded[3]
    (_, first_stream, first_pool), (_, second_stream, second_pool) = recorded[:2]
    assert first_stream is not second_stream
    assert [stream.device for stream in (first_stream, second_stream)] == GPUS
    assert first_pool != second_pool
    assert fake_cuda.stream is fake_cuda.caller


def test_only_recordings_run_on_their_stream(fake_cuda):  # noqa: F811
    """Otherwise cuBLAS would allocate its workspace for that stream outside of the graphs' memory."""
    streams = []
    Captured("cudagraph", GPUS[0]).prepare("key", lambda: streams.append(fake_cuda.stream))
    assert streams[:-1] == [fake_cuda.caller] * WARM_UPS
    assert streams[-1] is not fake_cuda.caller


def test_streams_are_not_shared_although_torch_hands_out_few(monkeypatch):
    few = [fake_stream() for _ in range(8)]
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: few[next(turn) % len(few)])
    turn = count()
    mine = [recording.own_stream(GPUS[0]) for _ in range(3)]
    next(turn), next(turn)  # a program has streams of its own
    mine += [recording.own_stream(GPUS[0]) for _ in range(5)]
    assert len(set(mine)) == 8
    assert recording.own_stream(GPUS[0]) in few, "there are no more: one is shared rather than none returned"


def test_forgotten_captures_give_their_pool_back(fake_cuda):  # noqa: F811
    made = Captured("cudagraph", GPUS[0])
    made.prepare("a", result)
    made.forget()
    made.prepare("b", result)
    (_, _, stream, pool), (_, _, other_stream, other_pool) = (n for n in fake_cuda.notes if n[0] == "record")
    assert pool != other_pool
    assert stream is not other_stream, "its cuBLAS workspace lies in the old pool"


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_debug_logs_the_nodes_of_each_graph(level, fake_cuda, monkeypatch, caplog):  # noqa: F811
    class Driver:
        def cuStreamGetCaptureInfo_v2(self, stream, capturing, id, graph, *edges):
            asked.append(stream.value)
            return 0

        def cuGraphGetNodes(self, graph, nodes, count):
            count._obj.value = 417
            return 0

    asked: list[int] = []
    monkeypatch.setattr(recording.ctypes, "CDLL", lambda name: Driver())
    caplog.set_level(level, "chatterbox_opt.engine.graphs")
    made = Captured("cudagraph", GPUS[0])
    made.prepare("key", result)
    assert made.nodes == ({"key": 417} if level == logging.DEBUG else {})
    assert [record.getMessage() for record in caplog.records] == ["captured key, 417 nodes"] * len(asked)
    assert asked == [note[2].cuda_stream for note in fake_cuda.notes if note[0] == "record"] * len(asked)


def test_a_driver_without_node_counts_breaks_no_capture(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(recording.ctypes, "CDLL", missing)
    assert recording.nodes_recorded(fake_stream()) is None
    monkeypatch.setattr(recording.ctypes, "CDLL", lambda name: object())
    assert recording.nodes_recorded(fake_stream()) is None


@pytest.mark.parametrize("broken", [True, False], ids=["recording cannot be ended", "it raises"])
def test_a_recording_that_fails_leaves_the_stream_and_the_allocator_as_they_were(broken, fake_cuda, caplog):  # noqa: F811
    runs = []

    def run():
        runs.append(fake_cuda.stream)
        if not broken and len(runs) == 3:  # behind two warm-ups: the one that is recorded
            raise RuntimeError("not while a stream is being captured")
        return torch.ones(3)

    fake_cuda.broken = broken
    made = Captured("cudagraph", GPUS[1], trial=Trial("step", torch.float32))
    assert not made.prepare("key", run)
    assert fake_cuda.stream is fake_cuda.caller
    assert fake_cuda.index == 0
    told = [note[0] for note in fake_cuda.notes if note[0] in ("reset", "end", "release")]
    assert told == ["reset", "end", "release"], "newer versions of torch clean up in the first, and refuse the others"
    assert ("end", 1, (0, 1)) in fake_cuda.notes
    assert ("release", 1, (0, 1)) in fake_cuda.notes
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert made.run("key", run).equal(torch.ones(3)), "it goes on as it comes"
    assert runs[-1] is fake_cuda.caller


def test_a_replay_runs_on_the_stream_that_is_current(fake_cuda):  # noqa: F811
    made = Captured("cudagraph", GPUS[0])
    made.prepare("key", result)
    made.run("key", result)
    assert fake_cuda.notes[-1] == ("replay", fake_cuda.caller)


def test_the_engine_waits_for_its_callers_stream(fake_cuda):  # noqa: F811
    class Idle(Driver):
        inbox: list

        def check(self, call):
            pass

        def end_all(self, error):
            pass

    driver = Idle(GPUS[1])
    driver.inbox = []
    assert driver._stream.device == GPUS[1]
    call = Call([])
    driver._submit(call)
    assert call.ready.stream is fake_cuda.caller
    with driver._place():
        assert fake_cuda.stream is driver._stream
        assert fake_cuda.index == 1, "whatever device is current in the thread that drives"
        driver.wait_for_inputs(call)
    assert driver._stream.waited == [call.ready]
    assert (fake_cuda.stream, fake_cuda.index) == (fake_cuda.caller, 0)


def test_noise_is_drawn_on_the_models_device(monkeypatch):
    asked = []

    class Generator:
        def __init__(self, device):
            asked.append(torch.device(device))

        def manual_seed(self, seed):
            return self

    monkeypatch.setattr(torch, "Generator", Generator)
    noise.RequestNoise(GPUS[1], 7)
    assert asked == [torch.device("cpu"), GPUS[1]]
    monkeypatch.setattr(torch.cuda, "default_generators", ["of 0", "of 1"])
    assert noise.global_generator(GPUS[1]) == "of 1"


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_a_model_on_the_second_gpu_allocates_nothing_on_the_first(family, monkeypatch):
    """Neither tensors nor tables, whatever device is current."""
    config, places = tiny(family), set()

    def see(func, given, out):
        places.update(t.device for t in tensors(out) if t.dim())

    monkeypatch.setattr(torch.nn.Module, "to", cast)
    with no_gpu():
        with torch.device(GPUS[1]):
            t3, flow, hift = cast(T3(config.t3), torch.bfloat16), Flow(config.flow), Hift(config.hift)
        with torch.device("cpu"), Watch(see):
            runner = TokenRunner(t3, EXACT)
            rows = 2 if config.t3.is_gpt else 4
            kv = empty_kv(config.t3, rows, 256, runner.device, runner.dtype)
            runner._use(Slots(2, rows, config.t3, runner.device), StaticKVCache(kv))
            runner.step._captured_step(2, rows, 256, True)
            mel, wav = MelRunner(flow, EXACT), WavRunner(hift, EXACT)
            held = mel.graphs._hold((1, 60))
            mel.graphs._step_of(held, unguided=False)()
            mel.graphs._encode_of(held)()
            wav.hift.decode(*wav._example((1, 64)), wav.operations)
    assert places - {torch.device("cpu")} == {GPUS[1]}


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_uploads_of_joining_and_leaving(family):
    """When one joins: the texts, then all rows. When one leaves: the slots that stay, and their rows."""
    config = tiny(family).t3
    asked = [request(config, n=7 + i, text_seed=i) for i in range(4)]
    for utterance in asked:
        utterance.text_ids = utterance.text_ids.numpy()  # tensors of a CPU are not allowed below
    with no_gpu():
        runner = TokenRunner(cast(T3(config), torch.bfloat16), EXACT)
        cache = StaticKVCache(empty_kv(config, 8, 512, runner.device, runner.dtype))

        def join():
            runner._use(Slots(4, 8, config, runner.device), cache)
            for utterance in asked:
                slot = runner.slots.add(utterance)
                runner._prompt([slot], [prefix])
                runner.slots.upload()

        def leave():
            runner.slots.remove(runner.slots.live[:1], cache)

        k = torch.zeros(config.layers, config.heads, config.prefix_len, config.head_dim, dtype=runner.dtype)
        prefix = Prefix(k, k)
        assert crossings(join) == ["aten.to.dtype_layout"] * 8
        assert crossings(leave) == ["aten.to.dtype_layout"] * 2


def test_uploads_go_through_pinned_memory_and_wait_for_nothing(monkeypatch):
    asked = []

    class Staged:
        def to(self, device, non_blocking):
            asked.append((device, non_blocking))

    def tensor(numbers, **how):
        asked.append((numbers, how["pin_memory"], how["device"]))
        return Staged()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "tensor", tensor)
    upload([1, 2], GPUS[1])
    assert asked == [([1, 2], True, "cpu"), (GPUS[1], True)]
    monkeypatch.undo()
    assert upload([1, 2], torch.device("cpu")).tolist() == [1, 2]


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_a_block_of_steps_uploads_nothing(family):
    """Uploads happen only when utterances join or leave."""
    config = tiny(family).t3
    asked = request(config, temperature=0.0)
    with no_gpu():
        runner = TokenRunner(cast(T3(config), torch.bfloat16), EXACT.replace(poll_every=4))
        cache = StaticKVCache(empty_kv(config, 2, 256, runner.device, runner.dtype))
        runner._use(Slots(1, 2, config, runner.device, 4), cache)
        runner.slots.add(asked)
        drawn = []

        def block():
            for k in range(4):
                runner.slots.use_noise(k)
                drawn.append(runner.step.run().clone())

        assert crossings(block) == []
    assert {(t.device.type, tuple(t.shape)) for t in drawn} == {("cuda", (1,))}

