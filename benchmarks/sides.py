"""The sides of the comparison, each in its own process, so that they share no memory, threads or caches.

A side reads one JSON request per line on stdin and answers with one JSON line; what its libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import meters
import workload

HOW_TO_INSTALL = (
    "the baseline, chatterbox-tts, is not installed: pip install -e '.[baseline]' && "
    "pip install --no-deps chatterbox-tts==0.1.7   (without a network: benchmarks/offline_bundle.sh)"
)
SAMPLING = {  # for both sides: upstream 0.1.7's defaults, except its multilingual repetition_penalty of 2.0
    "tts": dict(temperature=0.8, repetition_penalty=1.2, min_p=0.05, top_p=1.0, cfg_weight=0.5, exaggeration=0.5),
    "turbo": dict(temperature=0.8, repetition_penalty=1.2, top_p=0.95, top_k=1000),
}
SAMPLING["mtl"], SAMPLING["nano"] = SAMPLING["tts"], SAMPLING["turbo"]
STAGES = ("text", "tokens", "mel", "wav", "watermark")


class Baseline:
    """The real chatterbox-tts, with timers around its methods. Only the place where it stops is changed."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch

        self.torch, self.family, self.device = torch, request["family"], request["device"]
        self.empty = meters.memory(self.device)
        self.model = self._load(request["folder"], request["assembled"])
        self.seconds: dict[str, float] = {}
        self.limit: int | None = None
        self.drawn = 0
        draw = "inference"
        if self.family in ("turbo", "nano"):
            draw, loud = "inference_turbo", self.model.norm_loudness
            # With NumPy 2, which the wheel does not allow, its gain gives doubles, which its networks refuse.
            self.model.norm_loudness = lambda wav, *args: loud(wav, *args).astype("float32")
        self._bound(draw)
        meters.watch(self.model.t3, draw, self.device, self.seconds, "tokens")
        meters.watch(self.model.s3gen, "flow_inference", self.device, self.seconds, "mel")
        meters.watch(self.model.s3gen, "hift_inference", self.device, self.seconds, "wav")
        meters.watch(self.model.watermarker, "apply_watermark", self.device, self.seconds, "watermark")

    def _load(self, folder: str | None, assembled: bool) -> Any:
        if assembled:
            return self._assembled(folder)
        if self.family == "turbo":
            from chatterbox.tts_turbo import ChatterboxTurboTTS as Door
        elif self.family == "mtl":
            from chatterbox.models.t3.modules.t3_config import T3Config
            from chatterbox.mtl_tts import ChatterboxMultilingualTTS as Door
        else:
            from chatterbox.tts import ChatterboxTTS as Door
        model = Door.from_local(folder, self.device) if folder else Door.from_pretrained(self.device)
        if self.family == "mtl":
            # The wheel's alignment analyzer ends utterances by its own rules; later versions lack it.
            T3Config.is_multilingual = property(lambda self: False)
        return model

    def _assembled(self, folder: str | None) -> Any:
        """Assembles upstream's parts at other sizes: its constructors have fixed ones, and the wheel has no Nano."""
        if folder is None:
            raise ValueError(f"chatterbox-tts 0.1.7 cannot fetch {self.family}; give a checkpoint folder")
        sys.path.insert(0, str(workload.ROOT / "tests"))
        import upstream_tiny

        model = upstream_tiny.load(folder, self.family, watermark=True)
        for part in (model.t3, model.s3gen, model.ve):
            part.to(self.device)
        model.device, model.conds = self.device, model.conds.to(self.device)
        return model

    def _bound(self, name: str) -> None:
        """Sets the limit of generate(), which is fixed at 1000, and counts its tokens."""
        inner, argument, more = getattr(self.model.t3, name), "max_new_tokens", 0
        if name == "inference_turbo":
            argument, more = "max_gen_len", -1  # it draws one before its loop

        def bounded(*args: Any, **kwargs: Any) -> Any:
            if self.limit is not None:
                kwargs[argument] = self.limit + more
            tokens = inner(*args, **kwargs)
            self.drawn = int((tokens < 6561).sum())
            return tokens

        setattr(self.model.t3, name, bounded)

    def voice(self, path: str) -> None:
        self.model.prepare_conditionals(path)

    def speak(self, text: str, seed: int, tokens: int | None) -> tuple[Any, int, dict[str, float]]:
        self.torch.manual_seed(seed)
        self.seconds.clear()
        self.limit = tokens
        how = SAMPLING[self.family] | ({"language_id": "en"} if self.family == "mtl" else {})
        wav = self.model.generate(text, **how)
        return wav[0], self.drawn, dict(self.seconds)


class Optimized:
    """chatterbox_opt, by its public calls."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch  # noqa: F401  what an empty torch process weighs is measured before anything of ours is there

        self.device = request["device"]
        self.empty = meters.memory(self.device)
        folder = request["folder"]
        source = workload.Weights("", request["family"], Path(folder) if folder else None, False)
        self.model = workload.load(source, self.device, **workload.switches(request["options"]))
        self.family = request["family"]
        self.options = self.model.options
        self.spoken_in: Any = None

    def voice(self, path: str) -> None:
        self.spoken_in = self.model.prepare_voice(path)

    def speak(self, text: str, seed: int, tokens: int | None) -> tuple[Any, int, dict[str, float]]:
        from chatterbox_opt.base import MAX_CHARS
        from chatterbox_opt.text.split import split_text

        how = dict(SAMPLING[self.family])
        if tokens is not None:  # a long text is spoken in pieces, which add up to the same work
            how["max_new_tokens"] = -(-tokens // len(split_text(text, MAX_CHARS)))
        jobs = self.model.jobs(
            [text], voices=self.spoken_in, seeds=seed, language_ids="en" if self.family == "mtl" else None, **how
        )
        (speech,) = self.model.speak(jobs)
        silent = 3 * len(speech.tokens) if self.family in ("turbo", "nano") else 0
        return speech.wav[0], sum(map(len, speech.tokens)) - silent, speech.seconds


def serve() -> None:
    """The child's loop."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # upstream prints; only answers may reach the parent
    workload.quiet()
    os.environ["TQDM_DISABLE"] = "1"  # upstream shows a progress bar per utterance
    side: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "load":
                side, answer = _load(request)
            else:
                answer = {"voice": _voice, "speak": _speak}[request["do"]](side, request)
        except Exception as error:  # the figures of the other side are kept
            import traceback

            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)


def _load(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if request["threads"]:
        import torch

        torch.set_num_threads(request["threads"])
    side = (Baseline if request["side"] == "baseline" else Optimized)(request)
    answer = {"empty": side.empty, "loaded": meters.memory(side.device)}
    if isinstance(side, Optimized):
        answer["options"] = vars(side.options)
    meters.reset_peak(side.device)
    return side, answer


def _voice(side: Any, request: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": meters.timed(lambda: side.voice(request["path"]), side.device)[0]}


def _speak(side: Any, request: dict[str, Any]) -> dict[str, Any]:
    call = lambda: side.speak(request["text"], request["seed"], request["tokens"])  # noqa: E731
    seconds, (wav, tokens, stages) = meters.timed(call, side.device)
    if request.get("wav"):
        workload.write_wav(Path(request["wav"]), wav)
    stages = {name: stages.get(name, 0.0) for name in STAGES}
    stages["other"] = max(0.0, seconds - sum(stages.values()))
    return {
        "seconds": seconds,
        "tokens": tokens,
        "wav_seconds": len(wav) / workload.SAMPLE_RATE,
        "stages": stages,
        "memory": meters.memory(side.device),
    }


class Remote:
    """The parent's handle on a side."""

    def __init__(self, name: str, side: str, options: list[str]) -> None:
        self.name, self.side, self.options = name, side, options
        self.failed: str | None = None
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.born = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """Returns an answer, or {"error"}; after an error the side is not asked again."""
        if self.failed:
            return {"error": self.failed}
        try:
            self.process.stdin.write(
                json.dumps({"do": do, "side": self.side, "options": self.options, **request}) + "\n"
            )
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline() or '{"error": "its process ended; see stderr above"}')
        except (BrokenPipeError, json.JSONDecodeError) as error:
            answer = {"error": f"no answer: {error}"}
        self.failed = answer.get("error")
        if self.failed:
            workload.say(f"{self.name}: {self.failed}")
        return answer

    @property
    def age(self) -> float:
        """Returns the seconds since its process was started."""
        return time.perf_counter() - self.born

    def close(self) -> None:
        if self.process is None:
            return
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


if __name__ == "__main__":
    serve()
