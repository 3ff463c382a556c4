"""`model.t3`: text tokens to speech tokens, called as chatterbox-tts's own pipeline calls it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..computing import computing
from ..config import START_SPEECH, START_TEXT, STOP_SPEECH, STOP_TEXT, T3Config
from ..engine.dense import dense_state
from ..engine.resolve import stored_dtype
from ..executor import load_t3
from ..models.t3 import T3
from ..options import EngineOptions, SamplingOptions
from ..pipeline import Pipeline
from ..voice import T3Cond, as_emotion
from ..weights import layout
from ..weights.load import COPIES, unread_of_t3
from ..weights.published import published_t3
from .convert import own_t3
from .hyperparameters import Hyperparameters
from .part import Part, sorted_out
from .within import current

if TYPE_CHECKING:
    from typing_extensions import Self

LIMIT = 1000  # tokens, where a caller gives no limit


class T3Part(Part):
    named, called = "t3", ("inference", "inference_turbo")

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.device = pipeline, pipeline.device
        self._hp: tuple[T3Config, Hyperparameters] | None = None

    @property
    def place(self) -> Any:
        return self.pipeline

    @property
    def network(self) -> Any:
        return self.pipeline.t3 if self._kept is None else self._kept

    @property
    def dtype(self) -> torch.dtype:
        return stored_dtype(self.pipeline.options, self.device)

    @property
    def dim(self) -> int:
        return self.network.config.dim

    @property
    def hp(self) -> Hyperparameters:
        """Its own until another network comes."""
        config = self.network.config
        if self._hp is None or self._hp[0] is not config:
            self._hp = config, Hyperparameters.of(config)
        return self._hp[1]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("model.t3(...) is a step of training, which this model does not do; inference() draws tokens")

    # ---- tokens ------------------------------------------------------------------------------------

    def inference(
        self, *, t3_cond: Any, text_tokens: Tensor, initial_speech_tokens: Tensor | None = None,
        prepend_prompt_speech_tokens: Tensor | None = None, num_return_sequences: int = 1,
        max_new_tokens: int | None = None, stop_on_eos: bool = True, do_sample: bool = True, temperature: float = 0.8,
        top_p: float = 0.95, min_p: float = 0.05, length_penalty: float = 1.0, repetition_penalty: float = 1.2,
        cfg_weight: float = 0.5,
    ) -> Tensor:
        """Returns (1, n) tokens of the text (T,), (1, T) or, as for guidance, (2, T) with the same row twice, whose
        start and end ids are there; the last one is the end id unless the limit was reached. Arguments that
        chatterbox-tts takes and ignores are ignored here too."""
        del num_return_sequences, stop_on_eos, do_sample, length_penalty
        if prepend_prompt_speech_tokens is not None:
            raise ValueError("prepend_prompt_speech_tokens: not implemented, as in chatterbox-tts")
        if initial_speech_tokens is not None and (torch.as_tensor(initial_speech_tokens) != START_SPEECH).any():
            raise ValueError(f"initial_speech_tokens: speech begins with {START_SPEECH} here, and with nothing else")
        ids = _one_text(text_tokens)
        if not ((ids == START_TEXT).any() and (ids == STOP_TEXT).any()):
            raise AssertionError("text_tokens: its start and end ids are missing")
        sampling = SamplingOptions(
            repetition_penalty=float(repetition_penalty), min_p=float(min_p), top_p=float(top_p),
            temperature=float(temperature), cfg_weight=float(cfg_weight), max_new_tokens=max_new_tokens or LIMIT,
        )
        return self._drawn(ids, t3_cond, sampling, with_end=True)

    def inference_turbo(
        self, t3_cond: Any, text_tokens: Tensor, temperature: float = 0.8, top_k: int = 1000, top_p: float = 0.95,
        repetition_penalty: float = 1.2, max_gen_len: int = 1000,
    ) -> Tensor:
        """Returns (1, n) tokens of the text, (1, T), without the end id."""
        sampling = SamplingOptions(
            repetition_penalty=float(repetition_penalty), min_p=0.0, top_p=float(top_p), top_k=int(top_k),
            temperature=float(temperature), cfg_weight=0.0, max_new_tokens=max_gen_len + 1,
        )
        return self._drawn(_one_text(text_tokens), t3_cond, sampling, with_end=False)

    def _drawn(self, ids: Tensor, t3_cond: Any, sampling: SamplingOptions, with_end: bool) -> Tensor:
        self.check_in_use()
        call, cond = current(), _own_cond(t3_cond, self.device)
        utterance = self.pipeline.draw(ids, cond, sampling, call.noise, call.cancel, call.progress)
        end = [STOP_SPEECH] if with_end and utterance.stopped == "eos" else []
        return torch.tensor([utterance.tokens + end], dtype=torch.long, device=self.device)

    # ---- weights -----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Returns its weights under chatterbox-tts's names; quantized ones rounded, in float32. What speaking never
        reads (text_head, tables that are beside the embeddings) is not kept, and missing."""
        if not isinstance(self.network, T3):
            raise RuntimeError("model.t3.state_dict(): MLX keeps these weights in its own arrays")
        return published_t3(dense_state(self.network), self.network.config)

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """As Part's. With strict=False weights that are missing stay as they are. A text vocabulary of another size is
        taken where `hp` or a `text_emb` set by the program announces it."""
        self.check_in_use()
        config = dataclasses.replace(self.network.config, text_vocab=self._text_vocab())
        given = {key: tensor for key, tensor in state_dict.items() if not key.startswith(COPIES)}
        optional = unread_of_t3(config).__contains__
        state, found = sorted_out(given, layout.t3(config), optional, strict, self.named)
        if found.missing_keys:
            state = self.state_dict() | state
        self.take(self._made(state, config))
        for announced in ("text_emb", "text_head"):
            vars(self).pop(announced, None)
        return found

    def take(self, network: Any) -> None:
        place = self.pipeline
        network = own_t3(network, place.config, place.runs_on, place.options)
        if network is not None and not self.stands(network):
            self.pipeline.use(t3=network)

    def again(self) -> Self:
        return type(self)(self.pipeline)

    def lent(self, options: EngineOptions | None, device: torch.device) -> Any:
        same = self.pipeline.options == options and self.device == device
        return self.network if same else self.state_dict()

    def _text_vocab(self) -> int:
        announced = vars(self).get("text_emb")
        return self.hp.text_tokens_dict_size if announced is None else announced.num_embeddings

    def _made(self, state: Mapping[str, Tensor], config: T3Config) -> Any:
        place = self.pipeline
        with computing(self.device):
            return load_t3(dict(state), dataclasses.replace(place.config, t3=config), place.runs_on, place.options)


def _one_text(text_tokens: Any) -> Tensor:
    """(T,), (1, T) or (2, T) of equal rows -> (T,) on the host."""
    rows = torch.atleast_2d(torch.as_tensor(text_tokens)).long().cpu()
    if rows.ndim != 2 or len(rows) > 2 or not torch.equal(rows[0], rows[-1]):
        raise ValueError(f"text_tokens has shape {tuple(rows.shape)}: one text at a time, (T,), (1, T) or the same row "
                         "twice; generate_batch() speaks several")
    return rows[0]


def _own_cond(cond: Any, device: torch.device) -> T3Cond:
    """Takes chatterbox-tts's T3Cond, or ours. Tensors stay the same objects, by which the voice's prefix is kept."""
    if cond.cond_prompt_speech_tokens is None:
        raise ValueError("t3_cond has no cond_prompt_speech_tokens: prepare_conditionals() measures them")
    emotion = 0.5 if cond.emotion_adv is None else cond.emotion_adv
    tokens, emotion = cond.cond_prompt_speech_tokens, as_emotion(emotion, device)
    return T3Cond(cond.speaker_emb, cond_prompt_speech_tokens=tokens, emotion_adv=emotion)
