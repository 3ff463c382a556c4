"""What all stages share: arguments, pausing, checkpoints and the corpus on disk."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WARM_UP = 300  # steps to the full rate
EVERY = 100  # steps between two lines of the log, and two checkpoints


def arguments(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".mini"), help="folder of data and checkpoints")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600, help="stop after this long; call again to go on")
    parser.add_argument("--pause-file", type=Path, help="do nothing while this file exists")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def training_arguments(doc: str, steps: int, batch: int, rate: float) -> argparse.ArgumentParser:
    parser = arguments(doc)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rate", type=float, default=rate)
    return parser


class Clock:
    """The time spent working, without pauses."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.file, self.limit = args.pause_file, args.seconds
        self.start, self.paused = time.monotonic(), 0.0

    @property
    def spent(self) -> float:
        return time.monotonic() - self.start - self.paused

    def tick(self) -> bool:
        """Waits while the machine is needed otherwise. Returns False once the time is up."""
        began = time.monotonic()
        while self.file is not None and self.file.exists():
            time.sleep(1)
        self.paused += time.monotonic() - began
        return self.spent < self.limit


def setup(args: argparse.Namespace) -> Clock:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    return Clock(args)


def log(stage: str, args: argparse.Namespace, **values: Any) -> None:
    """Writes one JSON line to the screen and to the stage's log, from which the model card takes its figures."""
    line = json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()})
    print(stage, line, flush=True)
    with (args.work / f"{stage}.log").open("a") as file:
        file.write(line + "\n")


# ---- corpus --------------------------------------------------------------------------------------


def shards(work: Path, part: str = "train") -> list[Path]:
    return sorted((work / "data").glob(f"{part}-*.pt"))


def read(
    work: Path, part: str = "train", keys: tuple[str, ...] = (), limit: float = math.inf
) -> list[dict[str, Any]]:
    """Returns utterances with the named fields, by default all. Files are mapped and fields copied, so that a stage
    that needs only codes does not read ten hours of sound."""
    out = []
    for file in shards(work, part):
        if len(out) >= limit:
            break
        for item in torch.load(file, weights_only=True, mmap=True):
            out.append({k: own(item[k]) for k in keys or item})  # noqa: PERF401
    return out


def write(value: Any, file: Path) -> None:
    part = file.with_suffix(".part")
    torch.save(value, part)
    part.replace(file)  # a run killed while writing leaves the last complete one


def own(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) else value


def batches(items: list[Any], size: int, rng: random.Random) -> Iterator[list[Any]]:
    """Yields batches without end, reshuffled each epoch; a batch holds utterances of similar length."""
    while True:
        groups = [items[i : i + size] for i in range(0, len(items), size)]
        rng.shuffle(groups)
        yield from groups


# ---- training ------------------------------------------------------------------------------------


class Trainer:
    """AdamW with warm-up, and a decay by the fraction of steps done. Resumes where it stopped."""

    def __init__(self, name: str, args: argparse.Namespace, net: nn.Module, clock: Clock) -> None:
        self.name, self.args, self.net, self.clock = name, args, net, clock
        self.file = args.work / f"{name}.pt"
        wide = [p for p in net.parameters() if p.dim() > 1]
        narrow = [p for p in net.parameters() if p.dim() <= 1]
        groups = [{"params": wide, "weight_decay": 0.02}, {"params": narrow, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.98))
        self.step, self.spent = 0, 0.0
        if self.file.exists():
            state = torch.load(self.file, weights_only=True, map_location=args.device)
            net.load_state_dict(state["net"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.spent = state["step"], state["spent"]
            torch.manual_seed(args.seed + self.step)  # not the same noise as before

    @property
    def done(self) -> bool:
        return self.step >= self.args.steps

    @property
    def share(self) -> float:
        """The fraction of the steps that are done."""
        return self.step / max(1, self.args.steps)

    def run(
        self, batches: Iterable[Any], losses: Callable[[Any], dict], held_out: Callable[[], dict], **figures: Any
    ) -> None:
        """Trains until the steps are done, the time is up or the batches end. `losses` of a batch: "loss", and others
        for the log; `held_out()` returns those of sentences that are never trained on."""
        found: list[dict[str, float]] = []
        for batch in batches:
            if self.done or not self.clock.tick():
                return
            current = losses(batch)
            self.update(current["loss"])
            found.append({k: v.item() for k, v in current.items()})
            if self.step % EVERY == 0:
                mean = {k: average([f[k] for f in found]) for k in found[0]}
                found.clear()
                with torch.no_grad():
                    held = {f"held_{k}": float(v) for k, v in held_out().items()}
                log(self.name, self.args, step=self.step, seconds=self.clock.spent, **figures, **mean, **held)
                self.save()

    def update(self, loss: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.rate * min(1.0, (self.step + 1) / WARM_UP) * max(0.02, 1 - self.share)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1

    def save(self) -> None:
        state = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step,
                 "spent": self.spent + self.clock.spent}
        write(state, self.file)


def average(values: list[float]) -> float:
    return sum(values) / max(1, len(values))
