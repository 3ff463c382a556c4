"""Upstream's example with one import line changed, then what upstream has no call for.

    python example_optimized_tts.py                      # published weights, or a small voice without the hub
    python example_optimized_tts.py --voice my_voice.wav
"""

import argparse
import logging
import time
from pathlib import Path

import soundfile
import torch

from chatterbox_opt import EngineOptions
from chatterbox_opt.tts import ChatterboxTTS  # was: from chatterbox.tts import ChatterboxTTS

TEXT = "The last train had left an hour ago, and still the clock above the platform said half past eight."
LONG_TEXT = (
    "A long text is cut at the ends of its sentences. The pieces are spoken side by side, as rows of one batch, "
    "and joined with a short pause. Nothing is lost after forty seconds, and nothing waits for the piece before it. "
    "Each piece has a seed that follows from that of the call, so that the same text is spoken the same way again."
)


def best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load(device: str, weights: str, **options) -> tuple[ChatterboxTTS, dict]:
    """Returns the published model, or the small one inside the package if the hub cannot be reached."""
    if weights == "published":
        try:
            return ChatterboxTTS.from_pretrained(device=device, **options), {}
        except OSError as error:
            print(f"The published weights are out of reach ({error.__class__.__name__}); "
                  "going on with the small voice that comes with this package.")
            weights = "mini"
    if weights == "mini":
        return ChatterboxTTS.from_mini(device=device, **options), {}
    # Random weights make noise and never end a sentence, so these take a fixed two seconds.
    return ChatterboxTTS.from_random(device=device, size="full", **options), {"max_new_tokens": 50}


def report(name: str, seconds: float, audio_seconds: float, stages: dict[str, float]) -> None:
    where = ", ".join(f"{stage} {spent:.2f}" for stage, spent in stages.items())
    rtf = seconds / audio_seconds
    print(f"{name:<12} {audio_seconds:5.1f} s of audio in {seconds:6.2f} s, RTF {rtf:.2f} ({where})")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", default=best_device())
    arguments.add_argument("--weights", choices=("published", "mini", "random"), default="published")
    arguments.add_argument("--voice", type=Path, help="a recording of the voice to clone")
    arguments.add_argument("--output", type=Path, default=Path("."), help="where the wav files go")
    args = arguments.parse_args()
    if args.voice is not None and not args.voice.is_file():
        arguments.error(f"--voice {args.voice}: there is no such file")
    args.output.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")

    # 1. The swap: the same call as before. Every switch below has this value by default.
    model, limit = load(
        args.device,
        args.weights,
        enable_compilation=True,  # CUDA graphs on a GPU, traced steps on a CPU
        use_mixed_precision=True,  # bf16 or fp16 where the device computes in it, or reads weights in it
        enable_watermark=True,
        quantize=None,  # "int8" and "int4" halve and quarter T3's weights
        engine=EngineOptions(),  # everything else
    )
    model.warmup()  # optional: the first request is then as fast as later ones

    def speak(name: str, texts: list[str], **how) -> None:
        start = time.perf_counter()
        results = model.speak(model.jobs(texts, **{**limit, **how}))
        seconds = time.perf_counter() - start
        for i, speech in enumerate(results, 1):
            path = args.output / (f"{name}.wav" if len(results) == 1 else f"{name}-{i}.wav")
            soundfile.write(path, speech.wav[0].numpy(), model.sr)
        report(name, seconds, sum(r.wav.shape[1] for r in results) / model.sr, results[0].seconds)

    start = time.perf_counter()
    wav = model.generate(TEXT, **limit)  # upstream's one line
    soundfile.write(args.output / "test-1.wav", wav[0].numpy(), model.sr)
    report("generate", time.perf_counter() - start, wav.shape[1] / model.sr, {})

    # 2. A cloned voice, prepared once and used often.
    if args.voice is not None and not model.config.clones:
        print(f"{args.voice} is left aside: the small voice cannot clone.")
    elif args.voice is not None:
        voice = model.prepare_voice(args.voice)
        speak("cloned", [TEXT], voices=voice, seeds=0)

    # 3. A batch: one value for all texts, or one per text. Each is spoken as it would be alone.
    speak("batch", ["Hello there.", "How are you today?"], seeds=[1, 2], exaggeration=[0.3, 0.8])

    # 4. A long text is one call as well.
    speak("long", [LONG_TEXT], seeds=3)

    # 5. The same in chunks, which can be played while the rest is computed.
    start, heard = time.perf_counter(), []
    with soundfile.SoundFile(args.output / "stream.wav", "w", model.sr, 1) as file:
        for chunk in model.generate_stream(LONG_TEXT, seed=3, **limit):
            file.write(chunk[0].numpy())
            heard.append(time.perf_counter() - start)
    print(f"stream       first of {len(heard)} chunks after {heard[0]:.2f} s, the last after {heard[-1]:.2f} s")


if __name__ == "__main__":
    main()
