"""`model.t3.hp`: what programs read of T3's sizes and ids, and change before they build a T3 of chatterbox-tts with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..config import MODELS, SPEAKER_DIM, START_SPEECH, START_TEXT, STOP_SPEECH, STOP_TEXT, T3Config

BACKBONES = {("llama", 1024): "Llama_520M", ("gpt2", 1024): "GPT2_medium", ("gpt2", 768): "GPT2_small"}


@dataclass
class Hyperparameters:
    """Has the attributes of chatterbox-tts's T3Config. A change concerns this model in one place only: a T3 that is
    loaded later may have text_tokens_dict_size text tokens."""

    text_tokens_dict_size: int
    speech_tokens_dict_size: int
    max_text_tokens: int
    max_speech_tokens: int
    speech_cond_prompt_len: int
    llama_config_name: str
    n_channels: int
    input_pos_emb: str | None
    use_perceiver_resampler: bool
    emotion_adv: bool
    start_text_token: int = START_TEXT
    stop_text_token: int = STOP_TEXT
    start_speech_token: int = START_SPEECH
    stop_speech_token: int = STOP_SPEECH
    encoder_type: str = "voice_encoder"
    speaker_embed_size: int = SPEAKER_DIM

    @property
    def is_multilingual(self) -> bool:
        return self.text_tokens_dict_size == MODELS["mtl"].t3.text_vocab

    @classmethod
    def of(cls, config: T3Config) -> Hyperparameters:
        llama = not config.is_gpt
        return cls(
            text_tokens_dict_size=config.text_vocab, speech_tokens_dict_size=config.speech_vocab,
            max_text_tokens=config.text_positions - 2, max_speech_tokens=config.speech_positions - 4,
            speech_cond_prompt_len=config.prompt_tokens,
            llama_config_name=BACKBONES.get((config.backbone, config.dim), "of its own"), n_channels=config.dim,
            input_pos_emb="learned" if llama else None, use_perceiver_resampler=llama, emotion_adv=llama,
        )
