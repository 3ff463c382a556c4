"""Speech tokens -> mels, for one row or several: begin() encodes, each advance() does one step of the flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..config import FRAMES_PER_TOKEN, MEL_BINS, SPEECH_CODES, TOKEN_RATE
from ..models.conformer import padding_mask
from ..models.flow import Flow, time_span
from ..options import EngineOptions
from .flow_graphs import FlowGraphs, captured_size
from .flow_int8 import quantize_blocks
from .graphs import bucket
from .half import in_half
from .kernels.cpu import SCORES
from .noise import RequestNoise
from .operations import flow_operations
from .traced import Traced
from .transfers import upload

FRAMES_AT_ONCE = 12_000  # of a padded batch of several rows, prompts included: this bounds memory
ROWS_AT_ONCE = 16  # of a batch
SMALL = 20_000_000  # weights: in a larger flow Python's share of a step is nothing, and a trace costs three steps
GRAIN = 32  # frames: in half precision on a CPU products are prepared for each length, half of a small flow's time


def check_codes(rows: Sequence[Tensor]) -> None:
    """Raises ValueError for rows of speech tokens that are empty or hold ids without sound."""
    if not rows:
        return
    if any(len(row) == 0 for row in rows):
        raise ValueError("a row has no speech tokens; at least one is needed to render sound")
    low, high = torch.stack(torch.cat([row.view(-1) for row in rows]).aminmax()).tolist()  # waits for the device once
    if low < 0 or high >= SPEECH_CODES:
        raise ValueError(
            f"speech tokens from {low} to {high} were given and must lie in [0, {SPEECH_CODES}); "
            "drop control ids before rendering"
        )


@dataclass(frozen=True)
class MelJob:
    """Speech tokens (n,) to be rendered as a mel (80, 2n)."""

    tokens: Tensor
    voice: dict[str, Any]  # prompt_token, prompt_feat, embedding
    noise: RequestNoise
    steps: int | None = None  # of the flow; None: the model's own number
    said: tuple[Tensor, Tensor] | None = None  # what precedes in the utterance: (m,) tokens and their (80, 2m) mel


@dataclass(frozen=True)
class Row:
    """A job as the flow takes it: prompt and preceding tokens first."""

    ids: Tensor  # (n,)
    prompt: Tensor  # (frames of prompt and preceding tokens, 80), their mel
    noise: Tensor  # (2n, 80)
    xvector: Tensor  # (1, 192)


@dataclass(eq=False)
class Solve:
    """A batch of rows, padded to `size` frames, whose ODE is being solved."""

    rows: list[Row]
    steps: int
    size: int
    x: Tensor  # (B, size, 80), the state of the ODE
    conditions: tuple[Tensor, Tensor] = ()  # Flow.conditions
    mask: Tensor | None = None  # of attention, as Estimator.forward has it
    key: tuple[int, int] | None = None  # (rows, frames) of its captured graphs, if any
    at: int = 0  # steps done

    @property
    def done(self) -> bool:
        return self.at == self.steps

    def mels(self) -> list[Tensor]:
        """Returns the mel of each row, (80, T), without its prompt and preceding tokens."""
        return [x[len(row.prompt) : len(row.noise)].mT.contiguous() for x, row in zip(self.x, self.rows)]


class MelRunner:
    at_once: int | None = None  # renderings that run in parallel, each on a thread; None: as many as suit the CPU
    traced: Traced | None = None  # the step of full rows, where torch runs it

    def __init__(self, flow: Flow, options: EngineOptions) -> None:
        self.flow, self.options = flow, options
        self.device = flow.input_embedding.weight.device
        if options.s3gen_dtype != "float32":
            in_half(flow, getattr(torch, options.s3gen_dtype))
        self.half = flow.encoder_proj.weight.dtype  # of products and convolutions
        self.operations = flow_operations(flow, options)
        small = sum(weight.numel() for weight in flow.parameters()) < SMALL
        pads = small and self.device.type == "cpu" and self.half != torch.float32
        self.bucket = max(GRAIN if pads else 1, options.mel_bucket)
        traces = small and options.compile == "trace" and options.records("flow")
        self.traced = Traced("a step of the flow", flow, traces)
        if options.flow_int8:
            quantize_blocks(flow.decoder.estimator)
        self.euler = partial(flow.euler, ops=self.operations)
        self._schedules: dict[int, tuple[Tensor, Tensor]] = {}
        self.graphs = FlowGraphs(self)

    # ---- row, begin and advance: a mel in three calls ----------------------------------------------

    def row(self, job: MelJob) -> Row:
        """Returns the job's row, and draws its noise: once per job, also if its batch fails and it is rendered
        again."""
        check_codes([job.tokens])
        ids = job.voice["prompt_token"].to(self.device).long().view(-1)
        prompt = job.voice["prompt_feat"].to(self.device)[0]
        if self.options.prompt_seconds is not None:
            keep = int(self.options.prompt_seconds * TOKEN_RATE)
            ids, prompt = ids[:keep], prompt[: keep * FRAMES_PER_TOKEN]
        if job.said is not None:  # continued in the same way as a prompt
            ids, prompt = torch.cat([ids, job.said[0]]), torch.cat([prompt, job.said[1].mT])
        ids = torch.cat([ids, job.tokens.to(self.device).long()])
        # upstream's order: with meanflow the new frames' noise is drawn separately, before that of all frames
        frames, new = FRAMES_PER_TOKEN * len(ids), FRAMES_PER_TOKEN * len(job.tokens)
        tail = job.noise.normal((1, MEL_BINS, new)) if self.flow.config.meanflow else None
        noise = job.noise.normal((1, MEL_BINS, frames))
        if tail is not None:
            noise[:, :, frames - new :] = tail
        return Row(ids, prompt.float(), noise[0].mT, job.voice["embedding"].to(self.device).view(1, -1))

    def begin(self, rows: Sequence[Row], steps: int | None = None) -> Solve:
        """Encodes the rows as one batch, to be followed by `steps` calls of advance()."""
        counts = [len(row.ids) for row in rows]
        steps = steps or self.options.flow_steps or self.flow.config.default_steps
        key = self.graphs.key(len(rows), FRAMES_PER_TOKEN * max(counts))
        size = key[1] if key else self._padded(FRAMES_PER_TOKEN * max(counts))
        ids = torch.stack([F.pad(row.ids, (0, size // FRAMES_PER_TOKEN - len(row.ids))) for row in rows])
        prompt = torch.stack([F.pad(row.prompt, (0, 0, 0, size - len(row.prompt))) for row in rows])
        xvector = torch.cat([row.xvector for row in rows])
        noise = torch.stack([F.pad(row.noise, (0, 0, 0, size - len(row.noise))) for row in rows])
        solve = Solve(list(rows), steps, size, noise.float(), key=key)
        inputs = [ids, prompt, xvector, upload(counts, self.device)]
        if key is not None:
            self.graphs.encode(solve, inputs)
        else:
            full = all(FRAMES_PER_TOKEN * n == size for n in counts)
            solve.conditions, solve.mask = self.encode(*inputs, full=full)
        return solve

    def advance(self, solve: Solve) -> None:
        """Does one step of the flow."""
        span, times = self.schedule(solve.steps)
        i = solve.at
        unguided = i >= solve.steps - self.options.cfg_off_last
        time, dt = times[i], span[i + 1] - span[i]
        if solve.key is not None:
            self.graphs.advance(solve, time, dt, unguided)
        elif self.traced and not unguided and solve.size**2 <= SCORES:  # longer ones attend in a loop over parts
            inputs = [*solve.conditions] if solve.mask is None else [*solve.conditions, solve.mask]
            key = (len(solve.x), torch.get_num_threads(), solve.mask is None)  # attention is of as many heads at a time
            solve.x = self.traced(key, self.guided, solve.x, time, dt, *inputs)
        else:
            solve.x = self.euler(solve.x, time, dt, solve.conditions, solve.mask, unguided)
        solve.at += 1

    def guided(self, x: Tensor, time: Tensor, dt: Tensor, through: Tensor, short: Tensor, *mask: Tensor) -> Tensor:
        return self.euler(x, time, dt, (through, short), *mask)

    @torch.inference_mode()
    def render(
        self, jobs: Sequence[MelJob], steps: int | None = None, check: Callable[[], None] = lambda: None
    ) -> list[Tensor]:
        """Returns the mel of each job, (80, 2n). `check` is called before every step and may raise."""
        if steps is not None and (not isinstance(steps, Integral) or steps < 1):
            raise ValueError(f"steps={steps!r}: a whole number of at least 1 is needed; None takes the model's own")
        check_codes([job.tokens for job in jobs])
        rows = [self.row(job) for job in jobs]
        out: list[Tensor] = [torch.empty(0)] * len(rows)
        for group in self.groups([len(row.noise) for row in rows]):
            solve = self.begin([rows[i] for i in group], steps)
            while not solve.done:
                check()
                self.advance(solve)
            for i, mel in zip(group, solve.mels()):
                out[i] = mel
        return out

    # ---- batches -----------------------------------------------------------------------------------

    def groups(self, frames: Sequence[int]) -> list[list[int]]:
        """Returns batches of rows of similar length, as indices; `frames` are their lengths."""
        groups: list[list[int]] = []
        for i in sorted(range(len(frames)), key=frames.__getitem__):
            if groups and self.fits(len(groups[-1]) + 1, frames[i]):
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    def fits(self, rows: int, frames: int) -> bool:
        """Whether a batch may have that many rows of up to `frames` frames: memory and captured sizes limit it. On a
        CPU one row, which keeps it busy without padding."""
        if rows == 1:
            return True
        if self.device.type == "cpu" and not self.graphs.on:
            return False
        if self.graphs.on:
            rows, frames = bucket(rows), captured_size(frames, self.options.mel_bucket) or frames
        return rows <= ROWS_AT_ONCE and rows * frames <= FRAMES_AT_ONCE

    def _padded(self, frames: int) -> int:
        size = -(-frames // self.bucket) * self.bucket
        return size + size % FRAMES_PER_TOKEN

    # ---- the networks ------------------------------------------------------------------------------

    def encode(
        self, ids: Tensor, prompt: Tensor, xvector: Tensor, lengths: Tensor, *, full: bool
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Returns Flow.conditions of the rows, and their mask; `full`: no row is padded."""
        flow = self.flow
        mu = flow.encode(ids, None if full else lengths, self.operations)
        conditions = flow.conditions(mu, flow.speaker(xvector), prompt)
        return conditions, None if full else self._mask(FRAMES_PER_TOKEN * lengths, prompt.shape[1])

    def _mask(self, lengths: Tensor, size: int) -> Tensor:
        """Returns (B | 2B, 1, 1, size), to be added to scores: 0 at the frames below `lengths`, -inf elsewhere. Of a
        mask of bools SDPA would compute this in each of several hundred calls."""
        there = padding_mask(lengths, size)[:, None, None]
        mask = torch.zeros_like(there, dtype=self.half).masked_fill_(~there, -torch.inf)
        return mask.repeat(2, 1, 1, 1) if self.flow.guided else mask

    def schedule(self, steps: int) -> tuple[Tensor, Tensor]:
        """Returns the times (steps + 1,) and Estimator.time_table of them: the same for every utterance."""
        if steps not in self._schedules:
            span = time_span(steps, self.flow.config.meanflow, self.options.cfm_schedule, self.device)
            self._schedules[steps] = (span, self.flow.decoder.estimator.time_table(span))
        return self._schedules[steps]

    @torch.inference_mode()
    def warmup(self, batch: int = 1) -> None:
        """Captures the graphs of up to `batch` utterances of ordinary lengths, the largest first."""
        for shape in self.graphs.shapes(batch):
            self.graphs.capture(shape)
