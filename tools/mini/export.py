"""Stage `export`: the checkpoints as a folder that loads like any published one, in half precision."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from chatterbox_opt.config import S3_RATE
from chatterbox_opt.models.mel import slaney_filters
from chatterbox_opt.weights import layout
from chatterbox_opt.weights.load import load_folder

from . import common, flow, t3, tokenizer, vocoder
from .book import Book
from .sizes import CONFIG, LIMIT

PROMPT = 15  # codes of the built-in voice that the flow continues, 0.6 s, which every piece of a text takes time for


def parameters(stage: str, model: Any, work: Path) -> Any:
    """Returns the stage's network as trained so far."""
    state = torch.load(work / f"{stage}.pt", weights_only=True, map_location="cpu")
    model.load_state_dict(state["net"])
    return model.eval()


def untrained(shapes: layout.Layout, seed: int) -> dict[str, Tensor]:
    """Returns the two speaker networks: there is only one speaker, so any fixed result will do."""
    noise = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes.items():
        if name.endswith(layout.BATCH_COUNT):
            out[name] = torch.zeros((), dtype=torch.long)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            out[name] = torch.ones(shape)
        elif len(shape) == 1:
            out[name] = torch.zeros(shape)
        else:
            out[name] = torch.randn(shape, generator=noise) / math.sqrt(math.prod(shape[1:]))
    return out


def save(state: dict[str, Tensor], shapes: layout.Layout, file: Path) -> None:
    wrong = [k for k in state if k not in shapes or tuple(state[k].shape) != tuple(shapes[k])]
    if wrong:
        raise ValueError(f"{file.name}: {wrong[0]} does not fit its layout")
    half = {k: (v.half() if v.is_floating_point() else v).detach().contiguous() for k, v in state.items()}
    save_file(half, file)


def conditionals(work: Path) -> dict[str, Any]:
    speaker, prompt, emotion = t3.voice_of(work, "cpu")
    long = next(i for i in common.read(work, "train", ("codes", "mel")) if len(i["codes"]) >= PROMPT)
    spoken = long["codes"][:PROMPT].long()
    spoken = Book.at(work).write(spoken, torch.zeros_like(spoken))[None]
    gen = {
        "prompt_token": spoken, "prompt_token_len": torch.tensor([PROMPT]), "prompt_feat_len": None,
        "prompt_feat": long["mel"].t()[None, : 2 * PROMPT].float().contiguous(), "embedding": flow.xvector_of("cpu"),
    }
    cond = {"speaker_emb": speaker, "clap_emb": None, "cond_prompt_speech_tokens": prompt,
            "cond_prompt_speech_emb": None, "emotion_adv": emotion}
    return {"t3": cond, "gen": gen}


def stages(work: Path) -> dict[str, Tensor]:
    """Writes S3Gen's file; an untrained stage is written as initialized."""
    made = {"tokenizer": tokenizer.Model(0), "flow": flow.Model(0), "vocoder": vocoder.Model(0)}
    out: dict[str, Tensor] = {}
    for name, model in made.items():
        if (work / f"{name}.pt").exists():
            parameters(name, model, work)
        out |= model.export()
    shapes = {k: v for k, v in layout.s3gen(CONFIG).items() if k.startswith("speaker_encoder.")}
    filters = torch.from_numpy(slaney_filters(S3_RATE, 400, CONFIG.s3_tokenizer.n_mels, S3_RATE / 2))
    constants = dict(zip(layout.COMPUTED, (filters, torch.hann_window(400))))  # upstream requires them
    table = "flow.input_embedding.weight"
    out[table] = out[table][Book.at(work).pair]
    return out | untrained(shapes, seed=5) | constants


def main(argv: list[str]) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--out", type=Path, help="by default `asset` in the work folder")
    args = parser.parse_args(argv)
    common.setup(args)
    out = args.out or args.work / "asset"
    out.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        model = parameters("t3", t3.Model(0, Book.at(args.work)), args.work)
        used = torch.load(args.work / "used.pt", weights_only=True)
        save(model.export(used), layout.t3(CONFIG.t3), out / "t3_cfg.safetensors")
        save(stages(args.work), layout.s3gen(CONFIG), out / "s3gen.safetensors")
    save(untrained(layout.voice_encoder(CONFIG.voice_encoder), 3), layout.voice_encoder(CONFIG.voice_encoder),
         out / "ve.safetensors")
    (out / "tokenizer.json").write_bytes((args.work / "tokenizer.json").read_bytes())
    (out / "config.json").write_text(json.dumps(CONFIG.to_dict(), indent=1) + "\n", encoding="utf-8")
    torch.save(conditionals(args.work), out / "conds.pt")
    size = sum(file.stat().st_size for file in out.iterdir())
    if size > LIMIT:
        raise ValueError(f"{out} is {size} bytes; {LIMIT} are allowed")
    load_folder(out, "tts", torch.device("cpu"), torch.float32)  # as a user does
    common.log("export", args, folder=str(out), bytes=size)
