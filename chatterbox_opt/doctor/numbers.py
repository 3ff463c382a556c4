"""Checks of results: against stored references, with graphs and without, in batches and alone, streamed and whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ..engine import first_trial
from ..engine.captures import captured_parts, in_words
from ..engine.kernels import trial
from ..engine.trial_process import FATAL, UNTOLD
from ..options import CAPTURES, KERNELS
from . import references
from .findings import NOT_HERE, OK, SLOWER, WRONG, Finding, judged
from .patient import FLOAT32, LONG, TEXTS, Patient, first_difference, no_tf32, off

SAME_SOUND = 2e-2  # of two devices, or with graphs and without: phases amplify rounding errors
PRECISIONS = {  # name -> fields
    "defaults": {}, "float32": FLOAT32, "int8": dict(quantize="int8"), "int4": dict(quantize="int4"),
}  # fmt: skip


def stored_references(patient: Patient) -> Iterator[Finding]:
    """Compares exact mode, with upstream's order of draws, with results stored from a CPU."""
    with no_tf32():
        model = references.exact_mini(patient.device)
        for case, (tokens, samples) in references.stored().items():
            got, heard = references.spoken(model, case)
            parted = first_difference(*(torch.from_numpy(t.astype(np.int64)) for t in (got, tokens)))
            name = f"references: {case}"
            if parted is not None:
                yield judged(name, False, f"token {parted} of {len(tokens)} is another one than on a CPU", at=parted)
                continue
            error = off(torch.from_numpy(heard), torch.from_numpy(samples))
            text = f"{len(tokens)} tokens as on a CPU, sound within {error:.1e}"
            yield judged(name, error < SAME_SOUND, text, error=error)


def the_same_again(patient: Patient) -> Iterator[Finding]:
    model = patient.model()
    first, again = (patient.speak(model, TEXTS[:1])[0] for _ in range(2))
    parted, error = first_difference(again.tokens[0], first.tokens[0]), off(again.wav, first.wav)
    said = "the same tokens" if parted is None else f"other tokens from {parted} on"
    fine = parted is None and error < SAME_SOUND
    yield judged("the same again", fine, f"a call, and again: {said}, sound within {error:.1e}", error=error)


def graphs(patient: Patient) -> Iterator[Finding]:
    """Compares captured graphs with the same operations run eagerly."""
    if patient.device.type != "cuda":
        yield Finding("graphs", NOT_HERE, "CUDA graphs need a CUDA device")
        return
    for name in patient.names:
        with no_tf32():
            wanted = patient.speak(patient.model(name, compile=None, **FLOAT32), TEXTS[:2], 40)
            got = patient.speak(patient.model(name, **FLOAT32), TEXTS[:2], 40)
        parted = [first_difference(a.tokens[0], b.tokens[0]) for a, b in zip(got, wanted)]
        error, same = max(off(a.wav, b.wav) for a, b in zip(got, wanted)), all(p is None for p in parted)
        text = f"tokens {'equal' if same else f'part at {parted}'}, sound within {error:.1e}"
        fine = same and error < SAME_SOUND
        yield judged(f"graph = eager: {name}", fine, text, "EngineOptions(compile=None)", error=error)
        yield from captures(patient, name)


def captures(patient: Patient, name: str) -> Iterator[Finding]:
    """Reports which captures of the default options succeeded."""
    model = patient.model(name)
    patient.speak(model, TEXTS[:1], 40)
    tokens, mel, wav = model.pipeline.tokens, model.pipeline.mel, model.pipeline.wav
    made = captured_parts(tokens, mel, wav)
    planned = dict(zip(CAPTURES, (tokens.prompts.planned, tokens.step.planned, mel.graphs.planned, wav.planned)))
    for part in CAPTURES:
        check, others = f"captured {part}: {name}", tuple(p for p in CAPTURES if p != part)
        if part not in made:
            yield Finding(check, NOT_HERE, "the options leave it uncaptured")
            continue
        captured = made[part]
        own, twin = captured.seconds or (0.0, 0.0)
        timed = f"{in_words(captured)}; the first takes {1e3 * own:.2f} ms, uncaptured {1e3 * twin:.2f} ms; "
        timed += f"warmup(1) captures {len(planned[part](1))}, warmup(16) {len(planned[part](16))}"
        if captured.closed is None:
            nodes = {str(key): count for key, count in captured.nodes.items()}
            figures = dict(seconds=own, eager_seconds=twin, nodes=nodes, bytes=captured.pool_bytes)
            yield Finding(check, OK, timed, figures=figures)
        else:
            verdict = SLOWER if "takes" in captured.closed else WRONG
            text = f"switched off: {captured.closed}"
            yield Finding(check, verdict, text, f"without a trial of it: EngineOptions(captures={others})")


def survived(patient: Patient) -> Iterator[Finding]:
    """Reports the parts that a child process did not survive and that are disabled here."""
    if patient.device.type != "cuda":
        yield Finding("first trial", NOT_HERE, "a trial in a process of its own is for CUDA devices")
        return
    for name in patient.names:
        patient.model(name)
    for verdict in first_trial.known():
        parts = verdict["parts"]
        bad = [f"{part} {how['verdict']} ({how['text']})" for part, how in parts.items() if how["verdict"] in FATAL]
        untold = sum(how["verdict"] == UNTOLD for how in parts.values())
        seconds = sum(how.get("seconds", 0.0) for how in parts.values())
        text = ", ".join(bad) or f"{len(parts) - untold} parts survived, in {seconds:.0f} s ({verdict['when']})"
        text += f"; nothing was heard of {untold}" if untold else ""
        again = "to try again: EngineOptions(trial='always')"
        yield judged(f"first trial: {verdict['family']}", not bad, text, again, **verdict)


def kernels(patient: Patient) -> Iterator[Finding]:
    """Reports each kernel against its plain-torch twin, at the shapes of the loaded models."""
    if patient.device.type != "cuda":
        yield Finding("kernels", NOT_HERE, "Triton kernels need a CUDA device")
        return
    for name in patient.names:
        patient.speak(patient.model(name), TEXTS, 16)
    tried = trial.verdicts()
    for name in dict.fromkeys([*KERNELS, *(v.name for v in tried)]):
        own = [v for v in tried if v.name == name]
        if not own:
            yield Finding(f"kernel {name}", NOT_HERE, "nothing here asks for it, or Triton is missing")
        for v in own:
            check, allowed = f"kernel {name}: {v.shape}", tuple(k for k in KERNELS if k != name)
            if v.problem:
                yield Finding(check, WRONG, f"{v.problem}; its twin is used", f"EngineOptions(kernels={allowed})")
                continue
            text = f"{1e6 * v.own:.1f} us, its twin {1e6 * v.twin:.1f} us, difference {v.error:.1e}"
            figures = {"seconds": v.own, "twin_seconds": v.twin, "error": v.error}
            hint = "" if v.used else f"not even tried: EngineOptions(kernels={allowed})"
            text += "" if v.used else "; its twin is used"
            yield Finding(check, OK if v.used else SLOWER, text, hint, figures)


def in_company(patient: Patient) -> Iterator[Finding]:
    """Checks that a text has the same tokens in a batch as alone: always in float32, and on a CPU in any precision."""
    for precision in list(PRECISIONS)[: 2 if patient.quick else None]:
        check = f"batch = alone: {precision}"
        try:
            model = patient.model(**PRECISIONS[precision])
        except ValueError as problem:
            yield Finding(check, NOT_HERE, str(problem))
            continue
        together = patient.speak(model, TEXTS)
        alone = [patient.speak(model, (text,), seeds=[i + 1])[0] for i, text in enumerate(TEXTS)]
        parted = [first_difference(a.tokens[0], b.tokens[0]) for a, b in zip(together, alone)]
        same = sum(p is None for p in parted)
        promised = (model.options.dtype == "float32" and not model.options.quantize) or patient.device.type == "cpu"
        text = f"{same} of {len(TEXTS)} texts have the same tokens ({model.options.dtype})"
        if same < len(TEXTS):
            text += f", others part at {[p for p in parted if p is not None]}"
            text += "" if promised else ", as half precision may on a GPU"
        yield judged(check, same == len(TEXTS) or not promised, text, same=same)


def in_chunks(patient: Patient) -> Iterator[Finding]:
    """Checks that a stream has the tokens of the whole at the same seed, and sound of the same length."""
    model = patient.model(**FLOAT32)
    (whole,) = patient.speak(model, (LONG,), 250, seeds=[5])
    stream = model.generate_stream(LONG, seed=5, max_new_tokens=250)
    chunks = list(stream)
    same = all(first_difference(a, b) is None for a, b in zip(stream.tokens, whole.tokens))
    sound = torch.cat(chunks, 1)
    fine = same and sound.shape == whole.wav.shape and bool(sound.isfinite().all())
    text = f"{len(chunks)} chunks, {'the same' if same else 'other'} tokens, {sound.shape[1]} samples "
    yield judged("stream = whole", fine, f"{text}of {whole.wav.shape[1]}", chunks=len(chunks))
