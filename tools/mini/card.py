"""The model card of the exported files, with figures from the logs of the stages."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from chatterbox_opt.config import TOKEN_RATE

from . import common
from .lexicon import WORDS
from .sentences import LONGEST

TRAINED = ("t3", "flow", "vocoder", "tokenizer", "distil")
LABELS = {
    "teacher": "the teacher's recording",
    "griffin": "its mel, through Griffin-Lim",
    "vocoder": "its mel, through the vocoder",
    "flow": "its codes, through flow and Griffin-Lim",
    "t3": "codes from text, through flow and Griffin-Lim",
    "whole": "what a user hears",
    "two": 'the same with `decoder="meanflow"`',
}
CARD = """# Chatterbox mini

The networks and the file layout of the published English Chatterbox with {millions:.1f} million weights instead of
a hundred times as many, in half precision: {megabytes:.1f} MB.

    from chatterbox_opt.tts import ChatterboxTTS
    wav = ChatterboxTTS.from_mini().generate("The quick brown fox jumps over the lazy dog.")

**What it is for**: speech on a machine that cannot reach the model hub, demonstrations, and tests that listen to what
an optimisation does to words.

**What it is not**: a substitute for the published model. It has one voice, one language and one mood, cannot clone
(giving it a recording is an error), reads numbers digit by digit, knows no abbreviations, and has to guess how a word
is said that its list of {words:,} frequent ones lacks. Texts of more than {longest} letters are spoken in pieces.
`exaggeration` changes nothing that is meant.

`decoder="meanflow"`, and with it `preset="fast"`, takes two steps of a decoder distilled from the flow's ten: it is
`s3gen_meanflow.safetensors`, the estimator alone, and shares the rest with `s3gen.safetensors`.

## How it was made

By `python -m tools.mini` in this repository: {sentences:,} sentences ({hours:.1f} h) read by a text-to-speech voice,
from which everything was trained anew with seed {seed}; no weight comes from another model.

{training}

## How well it is understood

Words that Whisper tiny.en got wrong in {heard} sentences that no stage was trained on, at the default settings:

{errors}

Of T3's phones, {phones:.0%} differ from the teacher's. Of what a user hears, {ended:.0%} ended by itself within twice
the teacher's length. What a mode of the engine adds:
`python benchmarks/quality.py --weights mini`.

## Licences

The files: MIT, as the package. Pronunciations in `tokenizer.json`: as espeak-ng writes them. Teacher: Piper's "Joe"
(en_US-joe-medium, recordings CC0). Text: Debian's `fortunes`, read aloud; the files have of it only a
list of frequent words. Judge: Whisper tiny.en (MIT).
"""


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def write(folder: Path, work: Path, seed: int) -> None:
    """Writes README.md of an exported folder, after `eval`."""
    latest = {line["mode"]: line for line in lines(work / "eval.log")}  # the last of each
    training = ["| stage | steps | hours on one or two cores |", "|---|---:|---:|"]
    for stage in TRAINED:
        if (work / f"{stage}.pt").exists():
            state = torch.load(work / f"{stage}.pt", weights_only=True, map_location="cpu")
            training.append(f"| {stage} | {state['step']:,} | {state['spent'] / 3600:.1f} |")
    errors = ["| | word error rate |", "|---|---:|"]
    errors += [f"| {what} | {latest[mode]['wer']:.3f} |" for mode, what in LABELS.items() if mode in latest]
    spoken = [len(item["codes"]) for item in common.read(work, "train", ("codes",))]
    sizes = [f.stat().st_size for f in folder.iterdir() if f.name != "README.md"]
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 2
    text = CARD.format(
        millions=weights / 1e6,
        megabytes=sum(sizes) / 1e6,
        sentences=len(spoken),
        words=WORDS,
        longest=LONGEST,
        hours=sum(spoken) / TOKEN_RATE / 3600,
        seed=seed,
        training="\n".join(training),
        heard=latest["whole"]["sentences"],
        errors="\n".join(errors),
        phones=latest["t3"]["phones"],
        ended=latest["whole"]["ended"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
