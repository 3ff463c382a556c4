"""`chatterbox-opt say | convert | serve | pack | random-checkpoint`: the front doors from a shell."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .presets import PRESETS
from .text.libraries import LANGUAGES as LIBRARIES
from .weights.files import DECODERS

FAMILIES = {"english": "tts", "multilingual": "mtl", "turbo": "turbo", "nano": "nano"}
MODELS = (*FAMILIES, "mini")
SCORES = ("length", "words", "voice")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        args.run(args)
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        from .weights.hub import HubUnreachable

        message = " ".join(str(error).split())
        if isinstance(error, HubUnreachable):
            message += "; from a shell: --dir FOLDER, or --model mini"
        print(f"chatterbox-opt: {message}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("chatterbox-opt", description="Chatterbox TTS, faster.")
    commands = top.add_subparsers(required=True, metavar="say | convert | serve | pack | random-checkpoint")

    say = commands.add_parser("say", help="speak a text into a wav file")
    say.add_argument("text", help="the text; - reads standard input")
    say.add_argument("-o", "--output", type=Path, help="out.wav otherwise")
    say.add_argument("--model", choices=MODELS, default="english", help="mini: the small voice that needs no download")
    say.add_argument("--lang", help="language of --model multilingual, such as fr")
    say.add_argument("--voice", type=Path, help="a recording of the voice to speak in")
    say.add_argument("--exaggeration", type=float)
    say.add_argument("--cfg-weight", type=float)
    say.add_argument("--temperature", type=float)
    say.add_argument("--quantize", choices=("int8", "int4"))
    add_quality_arguments(say)
    say.add_argument(
        "--stream", action="store_true",
        help="no file, but samples to standard output while they are being made: | aplay -q -f S16_LE -r 24000",
    )
    say.set_defaults(run=run_say)

    convert = commands.add_parser("convert", help="speak a recording again in another voice")
    convert.add_argument("input", type=Path)
    convert.add_argument("-o", "--output", default="out.wav", type=Path)
    convert.add_argument("--target", type=Path, help="a recording of the voice; the built-in one otherwise")
    convert.set_defaults(run=run_convert)

    serve = commands.add_parser("serve", help="speak over HTTP, for OpenAI's clients and others")
    add_serve_arguments(serve)
    serve.set_defaults(run=run_serve)

    add_pack_command(commands)

    for command in (say, convert):
        command.add_argument("--seed", type=int, help="the same text, voice and seed give the same audio")
    for command in (say, convert, serve):
        command.add_argument("--device", default="auto", help="cuda, mps or cpu; the best there is otherwise")
        command.add_argument("--dir", type=Path, help="a checkpoint folder instead of the published weights")
        command.add_argument("--no-watermark", action="store_true")
        command.add_argument("--preset", choices=PRESETS, help="a bundle of options, see OPTIMIZATION.md")
        command.add_argument("--decoder", help="meanflow: Turbo's of two steps; or a file; standard: the model's own")
    for command in (say, serve):
        command.add_argument(
            "--cache-packed", action="store_true", help="keep the weights as they are used: the next start is quicker",
        )

    random = commands.add_parser("random-checkpoint", help="write a checkpoint of seeded random weights")
    random.add_argument("folder", type=Path)
    random.add_argument("--family", choices=("tts", "mtl", "turbo", "nano"), default="tts")
    random.add_argument("--size", choices=("tiny", "full"), default="tiny")
    random.add_argument("--decoder", choices=DECODERS, help="meanflow: the two-step one beside the family's own")
    random.add_argument("--seed", type=int, default=0)
    random.set_defaults(run=run_random)
    return top


def add_pack_command(commands: Any) -> None:
    pack = commands.add_parser("pack", help="write a checkpoint with its weights as they are used: quicker to load")
    pack.add_argument("folder", type=Path, help="a checkpoint folder")
    pack.add_argument("out", type=Path, help="a new folder, for --dir or from_local()")
    pack.add_argument("--model", choices=tuple(FAMILIES), default="english")
    pack.add_argument("--device", default="cpu", help="the one to load it on later: cpu, cuda or mps")
    pack.add_argument("--quantize", choices=("int8", "int4"))
    pack.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of T3; the device's own otherwise")
    pack.add_argument("--t3-file", help="a fine-tuned T3: a file of the folder, or any other")
    pack.add_argument("--decoder", help="meanflow: Turbo's of two steps; or a file; standard: the model's own")
    pack.set_defaults(run=run_pack)


def add_quality_arguments(say: argparse.ArgumentParser) -> None:
    say.add_argument("--spoken", action="store_true", help="say numbers, dates, money and units in words")
    say.add_argument("--spoken-by", choices=LIBRARIES, dest="spoken", help="the same, by this library")
    say.add_argument("--pronounce", type=Path, metavar="FILE", help="respellings, .toml or .json, see docs/text.md")
    say.add_argument("--takes", type=int, default=1, help="speak each piece so many times and keep the best")
    say.add_argument("--score", choices=SCORES, default="length", help="what is best: words needs the extra hearing")
    say.add_argument("--retries", type=int, default=0, help="draw a piece that ran away anew, so many times")


def add_serve_arguments(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--model", choices=MODELS, default="english", help="mini: the small one that needs no download")
    serve.add_argument("--quantize", choices=("int8", "int4"))
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in: set a key then")
    serve.add_argument("--port", type=int, default=8004)
    serve.add_argument("--api-key", help="asked for as a bearer token; any user of this machine can see it here")
    serve.add_argument("--api-key-file", type=Path, help="a file that holds the key")
    serve.add_argument("--voices", type=Path, default=Path("voices"), help="the folder of uploaded voices")
    serve.add_argument("--max-waiting", type=int, default=64, help="speeches that may wait; others are sent away (429)")
    serve.add_argument("--max-text", type=int, default=100_000, help="characters of a request")
    serve.add_argument("--max-upload-mb", type=int, default=25)
    serve.add_argument("--allow-origin", action="append", default=[], help="of a page elsewhere; may be repeated")
    serve.add_argument("--pronounce", type=Path, metavar="FILE", help="respellings for every request, see docs/text.md")
    serve.add_argument("--wyoming", type=int, metavar="PORT", help="speak Home Assistant's protocol too")
    serve.add_argument("--drain-seconds", type=float, default=120, help="to finish what was accepted, after SIGTERM")


def run_say(args: argparse.Namespace) -> None:
    text = sys.stdin.buffer.read().decode("utf-8-sig") if args.text == "-" else args.text
    if not text.strip():
        raise ValueError("there is no text to say")
    if args.lang and args.model != "multilingual":
        raise ValueError(f"--lang {args.lang} needs --model multilingual; {args.model} speaks English")
    if args.dir and args.model == "mini":
        raise ValueError(f"--dir {args.dir}: mini comes with the package; leave out one of the two")
    if args.stream and (args.output or sys.stdout.isatty()):
        raise ValueError("--stream writes no file, but samples into a pipe: ... --stream | aplay -q -f S16_LE -r 24000")
    if args.stream and (args.takes != 1 or args.retries):
        raise ValueError("--stream speaks while it draws, with nothing to choose from: leave out --takes and --retries")
    output = args.output or Path("out.wav")
    if not args.stream:
        check_output(output)
    respelt = pronunciations(args.pronounce)
    model = load(args)
    chosen = {k: getattr(args, k) for k in ("exaggeration", "cfg_weight", "temperature")}
    options = {k: v for k, v in chosen.items() if v is not None}
    if args.model == "multilingual":
        options["language_id"] = args.lang or "en"
    options |= {"audio_prompt_path": args.voice, "seed": args.seed, "spoken": args.spoken}
    if respelt is not None:
        options["pronounce"] = respelt.for_voice(args.voice.stem if args.voice else None)
    if args.stream:
        from .audio.io import pcm16

        for chunk in model.generate_stream(text, **options):
            sys.stdout.buffer.write(pcm16(chunk))
            sys.stdout.buffer.flush()
    else:
        options |= {"takes": args.takes, "retries": args.retries, "score": score_of(args, model)}
        save(output, model.generate(text, verbose=True, **options), model.sr)


def pronunciations(path: Path | None) -> Any:
    if path is None:
        return None
    from .text.pronounce import Pronunciations

    return Pronunciations.load(path)


def score_of(args: argparse.Namespace, model: Any) -> Any:
    from .scores import PlausibleLength, VoiceLikeness, WordsHeard

    if args.takes == 1 and not args.retries:
        return None
    if args.score == "voice":
        return VoiceLikeness(model)
    return WordsHeard() if args.score == "words" else PlausibleLength()


def run_convert(args: argparse.Namespace) -> None:
    from .vc import OptimizedChatterboxVC

    check_output(args.output)
    model = source(OptimizedChatterboxVC, args)
    save(args.output, model.generate(args.input, args.target, seed=args.seed), model.sr)


def run_serve(args: argparse.Namespace) -> None:
    try:
        from .serve.run import serve
        from .serve.settings import MEGABYTE, ServeSettings
    except ImportError as error:
        raise ValueError(f"{error}; the server needs more: pip install 'chatterbox-opt[serve]'") from error
    if args.dir and args.model == "mini":
        raise ValueError(f"--dir {args.dir}: mini comes with the package; leave out one of the two")
    if args.api_key and args.api_key_file:
        raise ValueError("--api-key and --api-key-file: one of the two is enough")
    key = args.api_key_file.read_text(encoding="utf-8").strip() if args.api_key_file else args.api_key
    settings = ServeSettings(
        model_id=args.model, host=args.host, port=args.port, api_key=key, voices_dir=args.voices,
        max_waiting=args.max_waiting, allowed_origins=tuple(args.allow_origin), wyoming_port=args.wyoming,
        max_text=args.max_text, max_upload=args.max_upload_mb * MEGABYTE, drain_seconds=args.drain_seconds,
        pronounce=pronunciations(args.pronounce),
    )
    serve(settings, lambda: load(args))


def run_pack(args: argparse.Namespace) -> None:
    from .options import EngineOptions
    from .packing import pack

    engine = EngineOptions(quantize=args.quantize, dtype=args.dtype or "auto")
    how = dict(t3_file=args.t3_file, decoder=args.decoder, engine=engine)
    form = pack(args.folder, args.out, FAMILIES[args.model], args.device, **how)
    print(f"{args.out}: {form}")


def run_random(args: argparse.Namespace) -> None:
    from .weights.random_init import write_checkpoint

    write_checkpoint(args.folder, args.family, args.size, args.seed, args.decoder)
    print(args.folder)


def load(args: argparse.Namespace) -> Any:
    if args.model in ("english", "mini"):
        from .tts import OptimizedChatterboxTTS

        return source(OptimizedChatterboxTTS, args, quantize=args.quantize)
    if args.model == "multilingual":
        from .mtl_tts import OptimizedChatterboxMultilingualTTS

        return source(OptimizedChatterboxMultilingualTTS, args, quantize=args.quantize)
    from .tts_turbo import OptimizedChatterboxTurboTTS

    return source(OptimizedChatterboxTurboTTS, args, nano=args.model == "nano", quantize=args.quantize)


def source(cls: Any, args: argparse.Namespace, **options: Any) -> Any:
    options |= {"preset": args.preset, "decoder": args.decoder}
    options = {k: v for k, v in options.items() if v is not None}
    device = best_device() if args.device == "auto" else args.device
    options["enable_watermark"] = not args.no_watermark
    if getattr(args, "cache_packed", False):
        options["cache_packed"] = True
    if args.dir:
        return cls.from_local(args.dir, device, **options)
    if getattr(args, "model", None) == "mini":
        return cls.from_mini(device, **options)
    return cls.from_pretrained(device, **options)


def best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_output(path: Path) -> None:
    """Ahead of the work, not behind it."""
    from .audio.io import writable_kinds

    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{path}: cannot be written")
    if path.suffix and path.suffix[1:].upper() not in writable_kinds():
        raise ValueError(f"{path}: sound cannot be written as {path.suffix}; .wav, .flac and .ogg are known")


def save(path: Path, wav: Any, rate: int) -> None:
    from .audio.io import write_wav

    write_wav(path, wav, rate)
    print(f"{path}: {wav.shape[-1] / rate:.2f} s")
