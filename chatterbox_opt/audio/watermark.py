"""The watermark of every output: Perth's, with its published weights, on the model's own device.

The weights are read from the installed resemble-perth package without importing it: the import needs librosa,
torchaudio and pkg_resources, and if one of them is missing the package sets its own class to None.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from ..computing import computing
from ..config import S3GEN_RATE
from .io import resample
from .perth_net import Decoder, Encoder, Facts, added_by, analyse, synthesise

logger = logging.getLogger(__name__)

Network = TypeVar("Network", Encoder, Decoder)

MEND = "`pip install resemble-perth`, or load the model with enable_watermark=False for sound without a watermark"
LOWEST_RATE = 8000  # Hz
_others = threading.Lock()  # another's watermarker may not bear several threads, on which long speeches are marked
AT_ONCE = 16 * 60 * S3GEN_RATE  # samples per batch: its widest layer then takes 100 MB


class Watermarker:
    """Adds and detects watermarks. `apply_watermark` and `get_watermark` have the signatures of Perth's watermarker."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        folder = _folder()
        self.facts = _facts(folder / "hparams.yaml")
        self._file = _checkpoint(folder)
        self._encoder = _load(Encoder(self.facts), "encoder.", self._file).to(device)
        self.device = next(self._encoder.parameters()).device  # with its index, where "cuda" was given without one
        self._decoder: Decoder | None = None
        self._lock = threading.Lock()

    @overload
    def apply(self, wavs: Tensor, sample_rate: int = S3GEN_RATE) -> Tensor: ...
    @overload
    def apply(self, wavs: Sequence[Tensor], sample_rate: int = S3GEN_RATE) -> list[Tensor]: ...

    @torch.inference_mode()
    def apply(self, wavs: Sequence[Tensor] | Tensor, sample_rate: int = S3GEN_RATE) -> list[Tensor] | Tensor:
        """Returns marked waves of the same lengths: a list of (N,) for a list, (N,) or (B, N) for a tensor."""
        if isinstance(wavs, Tensor):
            if not wavs.numel():
                return wavs
            rows = self.apply(list(wavs.reshape(-1, wavs.shape[-1])), sample_rate)
            return torch.stack(rows).view_as(wavs)
        rate = _check_rate(sample_rate)
        out = list(wavs)
        sounding = [i for i, w in enumerate(out) if len(w)]
        given = [out[i].to(self.device, torch.float32) for i in sounding]
        if given:
            for i, marked in zip(sounding, self._mark(given, rate)):
                out[i] = marked.to(out[i])
        return out

    def apply_watermark(self, wav: np.ndarray, sample_rate: int, watermark: Any = None, **_: Any) -> np.ndarray:
        """Returns (N,) or (B, N) samples marked, in float32. There is only one watermark: `watermark` is ignored."""
        with computing(self.device):
            return self.apply(_tensor(wav), sample_rate).cpu().numpy()

    def get_watermark(self, wav: np.ndarray, sample_rate: int, round: bool = True, **_: Any) -> np.ndarray:
        """Returns 1 if the (N,) samples are marked, else 0, as of silence; the confidence with round=False."""
        with computing(self.device):
            sure = self._detect(_tensor(wav).to(self.device).reshape(-1), _check_rate(sample_rate))
            return (sure.round() if round else sure).cpu().numpy()

    @torch.inference_mode()
    def _detect(self, samples: Tensor, rate: int) -> Tensor:
        """(N,) -> the confidence, a scalar; 0 of what is too short or too quiet to be heard, where Perth says NaN."""
        if not len(samples):
            raise ValueError("no samples were given; a watermark is detected in a second of speech, as a rule")
        found = analyse(self._rate(samples, rate, self.facts.sample_rate), self.facts)
        if len(found.loud) < 2:  # frames, which the decoder speeds up
            return samples.new_zeros(())
        with self._lock:
            if self._decoder is None:
                self._decoder = _load(Decoder(self.facts), "decoder.", self._file).to(self.device)
            decoder = self._decoder
        return decoder(found.decibels[None], found.loud[None])[0].nan_to_num(0.0).clamp(0, 1)

    def _mark(self, wavs: list[Tensor], rate: int) -> list[Tensor]:
        out: list[Any] = [None] * len(wavs)
        for group in self._groups([len(w) for w in wavs]):
            there = [self._rate(wavs[i], rate, self.facts.sample_rate) for i in group]
            added = added_by(self._encoder, [analyse(w, self.facts) for w in there], self.facts)
            marked = [w + synthesise(a, len(w), self.facts) for w, a in zip(there, added)]
            for i, m in zip(group, marked):
                out[i] = self._rate(m, self.facts.sample_rate, rate)[: len(wavs[i])]
        return out

    def _groups(self, lengths: list[int]) -> list[list[int]]:
        """Groups waves of similar length into batches, as a batch is padded to its longest. On the CPU each is alone,
        where a batch gains nothing and would hold all spectra at once."""
        groups: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lengths.__getitem__):
            full = not groups or (len(groups[-1]) + 1) * lengths[i] > AT_ONCE
            if full or self.device.type == "cpu":
                groups.append([])
            groups[-1].append(i)
        return groups

    def _rate(self, wav: Tensor, orig: int, new: int) -> Tensor:
        return resample(wav, orig, new, sharp=True)  # Perth resamples with soxr


def mark(watermarker: Any, wavs: Sequence[Tensor], rate: int = S3GEN_RATE) -> list[Tensor]:
    """Returns the waves marked by `model.watermarker`: ours, another one with Perth's interface, or None."""
    if watermarker is None:
        return list(wavs)
    if isinstance(watermarker, Watermarker) and "apply_watermark" not in vars(watermarker):  # not replaced
        return watermarker.apply(wavs, rate)
    with _others:
        marked = [watermarker.apply_watermark(w.float().cpu().numpy(), sample_rate=rate) for w in wavs]
    return [torch.as_tensor(np.asarray(m), dtype=torch.float32).to(w.device) for m, w in zip(marked, wavs)]


def _tensor(wav: Any) -> Tensor:
    wav = torch.as_tensor(np.asarray(wav, dtype=np.float32))
    if wav.dim() not in (1, 2):
        raise ValueError(f"wav has shape {tuple(wav.shape)}: (N,) or (B, N) samples are needed")
    return wav


def _check_rate(rate: Any) -> int:
    if isinstance(rate, bool) or rate != int(rate) or not LOWEST_RATE <= rate <= 768_000:
        raise ValueError(f"sample_rate={rate!r}: a whole number of Hz from {LOWEST_RATE} up is needed")
    return int(rate)


# ---- the weights ---------------------------------------------------------------------------------


def _folder() -> Path:
    spec = importlib.util.find_spec("perth")  # does not import it
    places = list(spec.submodule_search_locations or []) if spec else []
    for place in places:
        folder = Path(place, "perth_net", "pretrained", "implicit")
        if folder.is_dir():
            return folder
    if not places:
        raise ImportError(f"the watermark's weights come with resemble-perth, which is not installed: {MEND}")
    raise FileNotFoundError(f"{places[0]}: this package 'perth' is not resemble-perth, or it is incomplete: {MEND}")


def _checkpoint(folder: Path) -> Path:
    """Returns the checkpoint trained longest, as Perth does."""
    found = {int(m[1]): f for f in folder.iterdir() if (m := re.search(r"_(\d+)\.pth\.tar$", f.name))}
    if not found:
        raise FileNotFoundError(f"{folder}: no perth_net_*.pth.tar in it; install resemble-perth anew: {MEND}")
    return found[max(found)]


def _facts(file: Path) -> Facts:
    """Reads `name: value` lines, leaving out what only Perth's training needs."""
    pairs = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
    facts = Facts(**{k: type(v)(float(pairs[k])) for k, v in Facts()._asdict().items() if k in pairs})
    if pairs.get("window_fn", "hann").strip() != "hann" or int(pairs.get("window_size", facts.n_fft)) != facts.n_fft:
        raise ValueError(f"{file}: a window other than Hann's over the whole frame; this version of Perth is not known")
    return facts


def _load(module: Network, prefix: str, file: Path) -> Network:
    state = torch.load(file, map_location="cpu", weights_only=True)["model"]
    state = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    flat = {k: v.unsqueeze(2) if v.dim() == 3 else v for k, v in state.items()}  # for 2-D convolutions
    module.load_state_dict(flat, strict=True, assign=True)
    untyped: Any = module  # stubs up to torch 2.11 lack this signature
    untyped.to(memory_format=torch.channels_last)
    logger.debug("watermark: %s from %s", prefix[:-1], file)
    return module.eval().requires_grad_(False)
