"""`chatterbox-opt say`: speaks a text into a sound file, or into a pipe while it is computed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..files import decoded, write_whole
from . import model as models
from . import speech as speeches
from .files import check_captions, check_output, check_recordings, save, target_of, tell


def add_command(commands: Any) -> None:
    say = commands.add_parser("say", help="speak a text into a sound file")
    say.add_argument("text", help="the text; - reads standard input")
    say.add_argument("-o", "--output", type=Path, help="a .wav, .flac, .ogg or .mp3, by default out.wav; -: a pipe")
    say.add_argument("--lang", help="language of --model multilingual, such as fr")
    say.add_argument("--voice", type=Path, help="a recording of the voice")
    say.add_argument("--seed", type=int, help="the same text, voice and seed give the same audio")
    say.add_argument("--exaggeration", type=float, help="how lively; by default 0.5; not of turbo and nano")
    say.add_argument("--cfg-weight", type=float, help="0: no guidance, faster; by default 0.5; not of turbo and nano")
    say.add_argument("--temperature", type=float, help="0: always the likeliest token; by default 0.8")
    say.add_argument("--top-p", type=float, help="mass of the tokens drawn from; by default 1, of turbo and nano 0.95")
    say.add_argument("--max-new-tokens", type=int, help="a limit for each piece of the text; by default 1000, or 40 s")
    say.add_argument("--steps", type=int, dest="n_cfm_timesteps", help="of the flow decoder; by default its own number")
    say.add_argument(
        "--stream", action="store_true",
        help="write samples to standard output as they are computed: | aplay -q -f S16_LE -r 24000",
    )
    say.add_argument("--captions", type=Path, metavar="OUT.srt", help="write captions: .srt, .vtt or .json")
    say.add_argument("--words", action="store_true", help="word times in the captions; needs the extra 'hearing'")
    say.add_argument("--markup", action="store_true", help="the text has marks ([pause 0.8s]), see docs/long_form.md")
    say.add_argument("--breath", action="store_true", help="pauses between pieces by punctuation")
    say.add_argument("--loudness", type=float, metavar="LUFS", help="loudness of each piece (EBU R 128), such as -20")
    speeches.add_arguments(say)
    models.add_arguments(say, cache=True)
    say.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    text = decoded(sys.stdin.buffer.read(), "standard input") if args.text == "-" else args.text
    output = args.output or Path("out.wav")
    check(args, text, output)
    align = speeches.aligner() if args.words else None
    respelt = speeches.pronunciations(args.pronounce)
    model = models.load(args)
    options = options_of(args, respelt)
    takes = {"takes": args.takes, "retries": args.retries, "score": speeches.score_of(args, model)}
    if args.stream:
        stream(model, text, options)
    elif args.captions:
        speech = spoken_whole(model, text, options | {"loudness": args.loudness}, align=align, **takes)
        save(output, speech.wav, model.sr)
        write_whole(target_of(args.captions), speech.captions(args.captions.suffix.lower()).encode())
        tell(args.captions, output)
    else:
        options |= takes | {"loudness": args.loudness}
        save(output, model.generate(text, verbose=sys.stderr.isatty(), **options), model.sr)


def check(args: argparse.Namespace, text: str, output: Path) -> None:
    """Raises ValueError if the options contradict each other, before anything is loaded."""
    from ..calls import GenerateOptions
    from ..checks import check_exaggeration, check_loudness
    from ..options import SamplingOptions

    if not text.strip():
        raise ValueError("there is no text to say")
    check_unicode(text)
    models.check(args)
    speeches.check(args)
    if args.stream and (args.output or sys.stdout.isatty()):
        raise ValueError("--stream writes samples into a pipe, not a file: ... --stream | aplay -q -f S16_LE -r 24000")
    if args.stream and (args.takes != 1 or args.retries):
        raise ValueError("--stream speaks while tokens are drawn, so it has one take: leave out --takes and --retries")
    if args.stream and (args.captions or args.loudness is not None):
        raise ValueError("--stream takes neither --captions nor --loudness: both need the whole speech")
    if args.words and not args.captions:
        raise ValueError("--words needs --captions")
    check_exaggeration(args.exaggeration)
    check_loudness(args.loudness)
    GenerateOptions(n_cfm_timesteps=args.n_cfm_timesteps, takes=args.takes, retries=args.retries)  # raises
    drawn = {name: getattr(args, name) for name in ("cfg_weight", "temperature", "top_p", "max_new_tokens")}
    SamplingOptions(**{name: value for name, value in drawn.items() if value is not None})
    check_recordings(args.voice)
    if not args.stream:
        check_output(output)
    if args.captions:
        check_captions(args.captions)


def check_unicode(text: str) -> None:
    """Raises ValueError for bytes of a shell that are not UTF-8: captions, which come last, could not be written."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has bytes that are not UTF-8, at character {error.start + 1}") from error


def options_of(args: argparse.Namespace, respelt: Any) -> dict[str, Any]:
    """Returns the arguments of generate() and generate_stream()."""
    names = ("exaggeration", "cfg_weight", "temperature", "top_p", "max_new_tokens", "n_cfm_timesteps")
    chosen = {k: getattr(args, k) for k in names}
    options = {k: v for k, v in chosen.items() if v is not None}
    if args.model == "multilingual":
        options["language_id"] = models.language(args)
    options |= {"audio_prompt_path": args.voice, "seed": args.seed, "markup": args.markup, "breath": args.breath}
    options["spoken"] = args.spoken
    if respelt is not None:
        options["pronounce"] = respelt.for_voice(args.voice.stem if args.voice else None)
    return options


def stream(model: Any, text: str, options: dict[str, Any]) -> None:
    from ..audio.io import pcm16

    for chunk in model.generate_stream(text, **options):
        sys.stdout.buffer.write(pcm16(chunk))
        sys.stdout.buffer.flush()


def spoken_whole(model: Any, text: str, options: dict[str, Any], **how: Any) -> Any:
    """Returns a Speech whose sound equals generate()'s at the same seed."""
    from ..pipeline import NoSpeech

    how |= {name: options.pop(name) for name in ("n_cfm_timesteps",) if name in options}
    renamed = {"audio_prompt_path": "voices", "seed": "seeds", "language_id": "language_ids"}
    jobs = model.jobs([text], **{renamed.get(name, name): value for name, value in options.items()})
    (speech,) = model.speak(jobs, verbose=sys.stderr.isatty(), **how)
    if not speech.wav.numel():
        raise NoSpeech(text)
    return speech
