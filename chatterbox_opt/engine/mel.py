"""Speech tokens -> mel, for one and for many."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config import FRAMES_PER_TOKEN, MEL_BINS, SPEECH_CODES, TOKEN_RATE
from ..models.conformer import HalfLinear, WindowConv, padding_mask
from ..models.flow import Flow, time_span
from ..options import EngineOptions
from .graphs import Captured, bucket
from .noise import RequestNoise

TOKENS_AT_ONCE = 6000  # of a batch, prompts included: what bounds memory, not what bounds an utterance
ROWS_AT_ONCE = 16
LONGEST = 3000  # frames of a captured solve, prompt included; longer ones run as they come


def in_half(module: nn.Module, dtype: torch.dtype) -> None:
    """Products and convolutions to `dtype`. Everything they stand between stays in float32: the ids, the time, the
    state of the ODE and the norms are where half precision turns speech into noise."""
    for part in module.modules():
        if isinstance(part, (HalfLinear, WindowConv)):
            part.to(dtype)


def check_tokens(rows: Sequence[Tensor]) -> None:
    if not rows:
        return
    if any(len(row) == 0 for row in rows):
        raise ValueError("a row has no speech tokens; at least one is needed to render sound")
    low, high = torch.stack(torch.cat([row.view(-1) for row in rows]).aminmax()).tolist()  # one wait for all rows
    if low < 0 or high >= SPEECH_CODES:
        raise ValueError(
            f"speech tokens from {low} to {high} were given and must lie in [0, {SPEECH_CODES}); "
            "drop control ids before rendering"
        )


class MelRunner:
    def __init__(self, flow: Flow, options: EngineOptions) -> None:
        self.flow, self.options = flow, options
        self.device = flow.input_embedding.weight.device
        if options.s3gen_dtype != "float32":
            in_half(flow, getattr(torch, options.s3gen_dtype))
        # recorded as it is in every mode: all steps in one piece are too much for torch.compile at each of many lengths
        mode = "cudagraph" if options.compile and self.device.type == "cuda" else None
        self.captured = Captured(mode, self.device)
        self._held: dict[tuple, list[Tensor]] = {}
        self._schedules: dict[int, tuple[Tensor, Tensor]] = {}
        self.lock = threading.Lock()

    @torch.inference_mode()
    def render(
        self,
        tokens: Sequence[Tensor],
        voices: Sequence[dict[str, Any]],
        noises: Sequence[RequestNoise],
        steps: int | None = None,
        check: Callable[[], None] | None = None,
    ) -> list[Tensor]:
        """(n,) speech tokens, a voice's `gen` and a noise a row -> (80, 2n) mels, each what it would be alone. A voice
        with two frames a token may have a further entry `spoken`: (m,) tokens and their (80, 2m) mel, to be followed.
        `check` is called ahead of every solve, and of every step where steps are not captured: it may raise."""
        if steps is not None and (not isinstance(steps, Integral) or steps < 1):
            raise ValueError(f"steps={steps!r}: a whole number of at least 1 is needed; None takes the model's own")
        check_tokens(tokens)
        rows = [self._row(*row) for row in zip(tokens, voices, noises)]
        out: list[Tensor | None] = [None] * len(rows)
        with self.lock:
            for group in self._groups(rows):
                if check is not None:
                    check()
                for i, mel in zip(group, self._solve([rows[i] for i in group], steps, check)):
                    out[i] = mel
        return out

    @torch.inference_mode()
    def warmup(self, batch: int = 1, steps: int | None = None) -> None:
        """Capture the solves of up to `batch` utterances of any ordinary length, the largest first. Nothing is captured
        at any other time: a shape that was not foreseen runs as it comes."""
        if not self.captured.on:
            return
        steps = steps or self.options.flow_steps or self.flow.config.default_steps
        with self.lock:
            self.schedule(steps)
            for rows in (16, 8, 4, 2, 1):
                for size in reversed(sizes(self.options.mel_bucket)):
                    within = rows == 1 or rows * size <= FRAMES_PER_TOKEN * TOKENS_AT_ONCE
                    if rows <= min(bucket(batch), ROWS_AT_ONCE) and within:
                        self._capture((rows, size, steps))

    def _capture(self, key: tuple[int, int, int]) -> None:
        if key in self._held:
            return
        rows, size, steps = key
        n = size // FRAMES_PER_TOKEN
        held = [
            torch.zeros(rows, n, dtype=torch.long, device=self.device),
            *torch.zeros(2, rows, size, MEL_BINS, device=self.device),
            torch.zeros(rows, self.flow.spk_embed_affine_layer.in_features, device=self.device),
            torch.full((rows,), n, device=self.device),
        ]
        # always masked, so that every length in its bucket runs through the same graph
        self.captured.prepare(key, partial(self._forward, *held, full=False, steps=steps))
        self._held[key] = held

    def _row(self, tokens: Tensor, voice: dict[str, Any], noise: RequestNoise) -> dict[str, Tensor]:
        ids, prompt = voice["prompt_token"].to(self.device).long().view(-1), voice["prompt_feat"].to(self.device)[0]
        if self.options.prompt_seconds is not None:
            keep = int(self.options.prompt_seconds * TOKEN_RATE)
            ids, prompt = ids[:keep], prompt[: keep * FRAMES_PER_TOKEN]
        if "spoken" in voice:  # of this utterance itself, by an earlier call: it is continued as a prompt is
            said, mel = voice["spoken"]
            ids, prompt = torch.cat([ids, said]), torch.cat([prompt, mel.mT])
        ids = torch.cat([ids, tokens.to(self.device).long()])
        # upstream's order: with meanflow the new frames' noise is drawn on its own, before that of all frames
        frames, new = FRAMES_PER_TOKEN * len(ids), FRAMES_PER_TOKEN * len(tokens)
        tail = noise.normal((1, MEL_BINS, new)) if self.flow.config.meanflow else None
        start = noise.normal((1, MEL_BINS, frames))
        if tail is not None:
            start[:, :, frames - new :] = tail
        xvector = voice["embedding"].to(self.device)
        return {"ids": ids, "prompt": prompt.float(), "noise": start[0].mT, "xvector": xvector}

    def _groups(self, rows: list[dict[str, Tensor]]) -> list[list[int]]:
        """Rows of like length side by side. On the CPU one at a time: it is busy with one, and padding is work."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["ids"]))
        if self.device.type == "cpu":
            return [[i] for i in order]
        groups: list[list[int]] = []
        for i in order:
            fits = groups and len(groups[-1]) < ROWS_AT_ONCE
            if fits and (len(groups[-1]) + 1) * len(rows[i]["ids"]) <= TOKENS_AT_ONCE:
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    def _solve(self, rows: list[dict[str, Tensor]], steps: int | None, check: Callable | None = None) -> list[Tensor]:
        counts = [len(row["ids"]) for row in rows]
        steps = steps or self.options.flow_steps or self.flow.config.default_steps
        key = self._key(len(rows), FRAMES_PER_TOKEN * max(counts), steps)
        size = key[1]
        ids = torch.stack([F.pad(row["ids"], (0, size // FRAMES_PER_TOKEN - len(row["ids"]))) for row in rows])
        prompt = torch.stack([F.pad(row["prompt"], (0, 0, 0, size - len(row["prompt"]))) for row in rows])
        noise = torch.stack([F.pad(row["noise"], (0, 0, 0, size - len(row["noise"]))) for row in rows])
        xvector = torch.cat([row["xvector"].view(1, -1) for row in rows])
        lengths = torch.tensor(counts, device=self.device)
        inputs = [ids, prompt, noise, xvector, lengths]
        if key in self._held:
            mels = self._replay(key, inputs)
        else:
            full = all(FRAMES_PER_TOKEN * n == size for n in counts)
            mels = self._forward(*inputs, full=full, steps=steps, check=check)
        return [
            mel[len(row["prompt"]) : FRAMES_PER_TOKEN * n].mT.contiguous() for mel, row, n in zip(mels, rows, counts)
        ]

    def _key(self, rows: int, frames: int, steps: int) -> tuple[int, int, int]:
        """(rows, frames, steps) of the captured solve that is nearest, or of one that runs as it comes."""
        key = (bucket(rows), next((s for s in sizes(self.options.mel_bucket) if s >= frames), 0), steps)
        if key in self._held:
            return key
        size = -(-frames // self.options.mel_bucket) * self.options.mel_bucket
        return rows, size + size % FRAMES_PER_TOKEN, steps

    def _replay(self, key: tuple[int, int, int], inputs: list[Tensor]) -> Tensor:
        held, n = self._held[key], len(inputs[0])
        for mine, given in zip(held, inputs):
            mine[:n].copy_(given)  # further rows keep what an earlier call left: something finite, heard by nobody
        return self.captured.run(key, partial(self._forward, *held, full=False, steps=key[2]))[:n].clone()

    def _forward(
        self, ids: Tensor, prompt: Tensor, noise: Tensor, xvector: Tensor, lengths: Tensor, *, full: bool, steps: int,
        check: Callable | None = None,
    ) -> Tensor:
        """The whole flow of one batch: what is captured. (B, T, 80)"""
        flow, span_times = self.flow, self.schedule(steps)
        mu = flow.encode(ids, None if full else lengths)
        mask = None if full else self._mask(FRAMES_PER_TOKEN * lengths, noise.shape[1])
        off = self.options.cfg_off_last
        return flow.solve(noise, mu, flow.speaker(xvector), prompt, *span_times, mask=mask, unguided=off, check=check)

    def _mask(self, lengths: Tensor, size: int) -> Tensor:
        """(B, 1, 1, size) that is added to scores: of a mask of bools SDPA would make it in each of several hundred
        calls."""
        there = padding_mask(lengths, size)[:, None, None]
        dtype = self.flow.decoder.estimator.up.blocks[0].attn1.qkv.weight.dtype
        return torch.zeros_like(there, dtype=dtype).masked_fill_(~there, -torch.inf)

    def schedule(self, steps: int) -> tuple[Tensor, Tensor]:
        """(times, what every resnet is told at them): the same for every utterance."""
        if steps not in self._schedules:
            span = time_span(steps, self.flow.config.meanflow, self.options.cfm_schedule, self.device)
            self._schedules[steps] = (span, self.flow.decoder.estimator.time_table(span))
        return self._schedules[steps]


@cache
def sizes(step: int) -> tuple[int, ...]:
    """Frames of captured solves: multiples of `step`, an eighth apart where that is more: padding costs a tenth."""
    out, size, step = [], 0, step + step % FRAMES_PER_TOKEN
    while size < LONGEST:
        size += max(step, size // 8 // step * step)
        out.append(size)
    return tuple(out)
