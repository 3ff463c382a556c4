"""`chatterbox-opt say | read | convert | serve | batch | pack | doctor | random-checkpoint`, from a shell."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .presets import PRESETS
from .reading.command import add_arguments as add_read_arguments
from .reading.command import aligner
from .reading.command import run as run_read
from .text.libraries import LANGUAGES as LIBRARIES
from .weights.files import DECODERS

FAMILIES = {"english": "tts", "multilingual": "mtl", "turbo": "turbo", "nano": "nano"}
MODELS = (*FAMILIES, "mini")
SCORES = ("length", "words", "voice")


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        from .weights.hub import HubUnreachable

        message = " ".join(str(error).split())
        if isinstance(error, HubUnreachable):
            message += "; from a shell: --dir FOLDER, or --model mini"
        print(f"chatterbox-opt: {message}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("chatterbox-opt", description="Chatterbox TTS, faster.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

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
    say.add_argument("--captions", type=Path, metavar="OUT.srt", help="what is said when: .srt, .vtt or .json")
    say.add_argument("--words", action="store_true", help="the captions' times by word; needs the extra hearing")
    say.add_argument("--markup", action="store_true", help="heed [pause 0.8s] and other marks, see docs/long_form.md")
    say.add_argument("--breath", action="store_true", help="pauses between pieces by punctuation")
    say.add_argument("--loudness", type=float, metavar="LUFS", help="of every piece (EBU R 128), such as -20")
    say.set_defaults(run=run_say)

    read = commands.add_parser("read", help="read a script aloud: a book, a dialogue")
    add_read_arguments(read)
    read.add_argument("--model", choices=MODELS, default="english", help="mini: the small one that needs no download")
    read.add_argument("--quantize", choices=("int8", "int4"))
    read.set_defaults(run=lambda args: run_read(args, load))

    convert = commands.add_parser("convert", help="speak a recording again in another voice")
    convert.add_argument("input", type=Path)
    convert.add_argument("-o", "--output", default="out.wav", type=Path)
    convert.add_argument("--target", type=Path, help="a recording of the voice; the built-in one otherwise")
    convert.set_defaults(run=run_convert)

    serve = commands.add_parser("serve", help="speak over HTTP, for OpenAI's clients and others")
    add_serve_arguments(serve)
    serve.set_defaults(run=run_serve)

    batch = commands.add_parser("batch", help="speak a table of texts into a folder, and go on where that was left")
    add_batch_arguments(batch)
    batch.set_defaults(run=run_batch)

    add_pack_command(commands)

    for command in (say, convert):
        command.add_argument("--seed", type=int, help="the same text, voice and seed give the same audio")
    for command in (say, read, convert, serve, batch):
        command.add_argument("--device", default="auto", help="cuda, mlx, mps or cpu; the best there is otherwise")
        command.add_argument("--dir", type=Path, help="a checkpoint folder instead of the published weights")
        command.add_argument("--no-watermark", action="store_true")
        command.add_argument("--preset", choices=PRESETS, help="a bundle of options, see docs/options.md")
        command.add_argument("--decoder", help="meanflow: Turbo's of two steps; or a file; standard: the model's own")
    for command in (say, serve):
        command.add_argument(
            "--cache-packed", action="store_true", help="keep the weights as they are used: the next start is quicker",
        )

    doctor = commands.add_parser("doctor", help="examine it on this device, and write what to put into a bug report")
    doctor.add_argument("--device", default="auto", help="cuda, mps or cpu; the best there is otherwise")
    doctor.add_argument("--model", nargs="+", default=(), choices=MODELS, help="mini, or random weights of full size")
    doctor.add_argument("--quick", action="store_true", help="mini alone, in two minutes instead of ten")
    doctor.add_argument("--json", type=Path, metavar="FILE", help="the findings and figures")
    doctor.add_argument("--markdown", type=Path, metavar="FILE", help="the report")
    doctor.set_defaults(run=run_doctor)

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


def add_batch_arguments(batch: argparse.ArgumentParser) -> None:
    batch.add_argument("input", type=Path, help="rows of text, id, voice, seed, ...: .jsonl, .csv or .parquet")
    batch.add_argument("-o", "--output", type=Path, required=True, help="the folder of the sound and its manifest")
    batch.add_argument("--model", choices=MODELS, default="english", help="mini: the small one that needs no download")
    batch.add_argument("--quantize", choices=("int8", "int4"))
    batch.add_argument("--format", choices=("flac", "mp3", "wav"), default="flac")
    batch.add_argument("--shard", type=int, metavar="ROWS", help="WebDataset tar files of so many rows instead")
    batch.add_argument("--voice", type=Path, help="a recording, or a saved voice, for rows that name none")
    batch.add_argument("--lang", help="language of --model multilingual, such as fr, for rows that name none")


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
    if args.stream and (args.captions or args.loudness is not None):
        raise ValueError("--stream has neither captions nor an even loudness: both need the whole")
    if args.words and not args.captions:
        raise ValueError("--words times the captions: say where they go, by --captions")
    output = args.output or Path("out.wav")
    if not args.stream:
        check_output(output)
    if args.captions:
        check_captions(args.captions)
    align = aligner() if args.words else None
    respelt = pronunciations(args.pronounce)
    model = load(args)
    chosen = {k: getattr(args, k) for k in ("exaggeration", "cfg_weight", "temperature")}
    options = {k: v for k, v in chosen.items() if v is not None}
    if args.model == "multilingual":
        options["language_id"] = args.lang or "en"
    options |= {"audio_prompt_path": args.voice, "seed": args.seed, "markup": args.markup, "breath": args.breath}
    options["spoken"] = args.spoken
    if respelt is not None:
        options["pronounce"] = respelt.for_voice(args.voice.stem if args.voice else None)
    takes = {"takes": args.takes, "retries": args.retries, "score": score_of(args, model)}
    if args.stream:
        from .audio.io import pcm16

        for chunk in model.generate_stream(text, **options):
            sys.stdout.buffer.write(pcm16(chunk))
            sys.stdout.buffer.flush()
    elif args.captions:
        speech = spoken_whole(model, text, options | {"loudness": args.loudness}, align=align, **takes)
        save(output, speech.wav, model.sr)
        args.captions.write_text(speech.captions(args.captions.suffix.lower()), encoding="utf-8")
        print(args.captions)
    else:
        options |= takes | {"loudness": args.loudness}
        save(output, model.generate(text, verbose=True, **options), model.sr)


def check_captions(path: Path) -> None:
    from .captions import check_kind

    check_kind(path)
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")


def spoken_whole(model: Any, text: str, options: dict[str, Any], **how: Any) -> Any:
    """generate()'s sound at the same seed, with how it came about."""
    from .pipeline import NoSpeech

    renamed = {"audio_prompt_path": "voices", "seed": "seeds", "language_id": "language_ids"}
    jobs = model.jobs([text], **{renamed.get(name, name): value for name, value in options.items()})
    (speech,) = model.speak(jobs, verbose=True, **how)
    if not speech.wav.numel():
        raise NoSpeech(text)
    return speech


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


def run_doctor(args: argparse.Namespace) -> int:
    from .checks import usable_device
    from .doctor.examine import examine

    device = usable_device(best_device() if args.device == "auto" else args.device)
    device = "mps" if device == "mlx" else device  # what is examined is torch's
    return examine(device, args.model, args.quick, args.json, args.markdown)


def run_batch(args: argparse.Namespace) -> None:
    from .scale.batch import speak_table
    from .scale.rows import read_rows
    from .scale.speaking import speak

    if args.lang and args.model != "multilingual":
        raise ValueError(f"--lang {args.lang} needs --model multilingual; {args.model} speaks English")
    if args.dir and args.model == "mini":
        raise ValueError(f"--dir {args.dir}: mini comes with the package; leave out one of the two")
    language = (args.lang or "en") if args.model == "multilingual" else None
    common = {"voice": args.voice and str(args.voice.absolute()), "language_id": language}
    rows = read_rows(args.input, {name: value for name, value in common.items() if value is not None})
    settings = {name: getattr(args, name) for name in ("model", "quantize", "preset", "decoder", "no_watermark")}
    settings["dir"] = args.dir and str(args.dir.absolute())

    def outcomes(left: Sequence[Any]) -> Any:
        return speak(load(args), left, args.format)

    done = speak_table(rows, args.output, outcomes, args.format, shard=args.shard, settings=settings)
    print(f"{args.output}: {done.made} made, {done.before} there before; {done.seconds:.1f} s of speech")
    if done.failed:
        raise ValueError(f"{done.failed} of {done.rows} rows failed: {args.output / 'failures.jsonl'} says why")


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

    from .checks import missing_mlx

    if torch.cuda.is_available():
        return "cuda"
    if not torch.backends.mps.is_available():
        return "cpu"
    return "mlx" if on_apple_silicon() and not missing_mlx() else "mps"


def on_apple_silicon() -> bool:
    return (platform.system(), platform.machine()) == ("Darwin", "arm64")


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
