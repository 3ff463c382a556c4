"""What a checkpoint fixes: rates, token ids and the size of every network. Standard library only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

# ---- rates ---------------------------------------------------------------------------------------
S3_RATE = 16_000  # Hz, input of the speech tokenizer, the x-vector and the voice encoder
S3GEN_RATE = 24_000  # Hz, of the flow's mel and the vocoder's output
TOKEN_RATE = 25  # speech tokens per second
MEL_BINS = 80
FRAMES_PER_TOKEN = 2  # mel frames, 50 per second
SAMPLES_PER_FRAME = 480  # at S3GEN_RATE
SAMPLES_PER_TOKEN = FRAMES_PER_TOKEN * SAMPLES_PER_FRAME
SPEAKER_DIM = 256  # voice-encoder embedding
XVECTOR_DIM = 192  # CAMPPlus embedding

# ---- speech token ids ----------------------------------------------------------------------------
SPEECH_CODES = 6561  # 3^8: ids below this are sound, the rest is control
START_SPEECH = 6561
STOP_SPEECH = 6562
SILENCE_TOKEN = 4299  # Turbo appends three of these
START_TEXT = 255
STOP_TEXT = 0


@dataclass(frozen=True)
class VoiceEncoderConfig:
    """Reference wav -> speaker embedding for T3: an LSTM over 40-bin mels."""

    n_mels: int = 40
    hidden: int = 256
    layers: int = 3


@dataclass(frozen=True)
class S3TokenizerConfig:
    """16 kHz wav -> 25 Hz speech tokens: Whisper-like encoder with FSMN memory, then 8 ternary digits."""

    n_mels: int = 128
    dim: int = 1280
    heads: int = 20
    layers: int = 6


@dataclass(frozen=True)
class CampplusConfig:
    """16 kHz filter banks -> x-vector for S3Gen: a 2-D head, then three dense TDNN blocks."""

    feat_dim: int = 80
    head_channels: int = 32
    init_channels: int = 128
    growth: int = 32
    bottleneck: int = 4  # bottleneck width as a multiple of growth
    block_layers: tuple[int, ...] = (12, 24, 16)


@dataclass(frozen=True)
class T3Config:
    """Text tokens -> speech tokens: conditioning prefix, transformer backbone, two embeddings, one head."""

    backbone: str = "llama"  # "llama" (English, multilingual) or "gpt2" (Turbo, Nano)
    dim: int = 1024
    layers: int = 30
    heads: int = 16
    ff: int = 4096
    norm_eps: float = 1e-5
    text_vocab: int = 704
    speech_vocab: int = 8194
    text_positions: int = 2050  # learned, Llama only: 2048 tokens, start and end
    speech_positions: int = 4100  # learned, Llama only
    max_positions: int = 8196  # of the GPT-2 backbone's learned table, or of the table of Llama's rope
    prompt_tokens: int = 150  # speech tokens of the voice in the prefix: 6 s; Turbo 375, 15 s
    perceiver_queries: int = 32  # Llama only: the prompt is resampled to this many positions
    perceiver_heads: int = 4
    rope_theta: float = 500_000.0
    rope_factor: float = 8.0  # Llama 3's frequency scaling
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_original: int = 8192

    @property
    def is_gpt(self) -> bool:
        return self.backbone == "gpt2"

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def prefix_len(self) -> int:
        """Positions of the voice: speaker, prompt, and for Llama emotion."""
        return 1 + self.prompt_tokens if self.is_gpt else 1 + self.perceiver_queries + 1

    @property
    def block_weights(self) -> int:
        """Number of weights in the products of all blocks, which every token reads."""
        return self.layers * self.dim * (4 * self.dim + (2 if self.is_gpt else 3) * self.ff)


@dataclass(frozen=True)
class FlowConfig:
    """Speech tokens -> mel: an up-sampling conformer, then an ODE solved by a U-shaped estimator."""

    dim: int = 512  # conformer width
    heads: int = 8
    ff: int = 2048
    layers: int = 6  # before the up-sampling, at 25 Hz
    up_layers: int = 4  # after it, at 50 Hz
    pre_lookahead: int = 3  # tokens
    channels: int = 256  # estimator width
    est_heads: int = 8
    est_head_dim: int = 64
    mid_blocks: int = 12
    block_layers: int = 4  # transformer blocks behind each resnet
    meanflow: bool = False  # Turbo: two linear steps, no CFG
    cfg_rate: float = 0.7

    @property
    def default_steps(self) -> int:
        return 2 if self.meanflow else 10


@dataclass(frozen=True)
class HiftConfig:
    """Mel -> wav: F0 net, harmonic source, up-sampling residual stack, inverse STFT."""

    channels: int = 512
    f0_channels: int = 512
    harmonics: int = 8  # above the fundamental
    up_rates: tuple[int, ...] = (8, 5, 3)
    up_kernels: tuple[int, ...] = (16, 11, 7)
    res_kernels: tuple[int, ...] = (3, 7, 11)
    res_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    source_kernels: tuple[int, ...] = (7, 7, 11)
    source_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    n_fft: int = 16
    hop: int = 4
    sine_amp: float = 0.1
    noise_std: float = 0.003
    voiced_threshold: float = 10.0  # Hz
    audio_limit: float = 0.99
    lrelu_slope: float = 0.1


@dataclass(frozen=True)
class ModelConfig:
    """All networks of one model."""

    family: str  # "tts" | "mtl" | "turbo" | "nano"
    clones: bool = True  # False: trained on a single voice
    max_chars: int | None = None  # per utterance, if it was trained on shorter ones than generate() allows
    t3: T3Config = field(default_factory=T3Config)
    voice_encoder: VoiceEncoderConfig = field(default_factory=VoiceEncoderConfig)
    s3_tokenizer: S3TokenizerConfig = field(default_factory=S3TokenizerConfig)
    campplus: CampplusConfig = field(default_factory=CampplusConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    hift: HiftConfig = field(default_factory=HiftConfig)

    def with_text_vocab(self, size: int) -> ModelConfig:
        return dataclasses.replace(self, t3=dataclasses.replace(self.t3, text_vocab=size))

    def with_meanflow(self, meanflow: bool) -> ModelConfig:
        return dataclasses.replace(self, flow=dataclasses.replace(self.flow, meanflow=meanflow))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict`, for the `config.json` of a checkpoint that is not of published size."""
        return _build(cls, data, "config")


def _build(cls: type, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise ValueError(f"{where}={data!r}: an object is needed")
    known = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; allowed are {', '.join(known)}")
    kwargs = {}
    for name, value in data.items():
        part = _PARTS.get(name)
        kwargs[name] = _build(part, value, f"{where}.{name}") if part else _tuples(value)
    return cls(**kwargs)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


_PARTS: dict[str, type] = {
    "t3": T3Config,
    "voice_encoder": VoiceEncoderConfig,
    "s3_tokenizer": S3TokenizerConfig,
    "campplus": CampplusConfig,
    "flow": FlowConfig,
    "hift": HiftConfig,
}

_TURBO_T3 = T3Config(
    backbone="gpt2", layers=24, text_vocab=50_276, speech_vocab=6563, prompt_tokens=375
)

# Published sizes. The file names of each family are in weights/files.py.
MODELS: dict[str, ModelConfig] = {
    "tts": ModelConfig("tts"),
    "mtl": ModelConfig("mtl", t3=T3Config(text_vocab=2454)),
    "turbo": ModelConfig("turbo", t3=_TURBO_T3, flow=FlowConfig(meanflow=True)),
    "nano": ModelConfig(
        "nano",
        t3=dataclasses.replace(_TURBO_T3, dim=768, layers=12, heads=12, ff=3072),
        flow=FlowConfig(meanflow=True),
    ),
}


def tiny(family: str) -> ModelConfig:
    """Returns the same architecture a thousand times smaller, for tests. Vocabularies and rates are unchanged."""
    full = MODELS[family]
    return dataclasses.replace(
        full,
        t3=dataclasses.replace(full.t3, dim=64, layers=2, heads=4, ff=128),
        voice_encoder=VoiceEncoderConfig(hidden=256, layers=1),
        s3_tokenizer=S3TokenizerConfig(dim=64, heads=2, layers=2),
        campplus=CampplusConfig(head_channels=8, init_channels=32, growth=8, block_layers=(2, 2, 2)),
        flow=dataclasses.replace(
            full.flow, dim=64, heads=2, ff=96, layers=2, up_layers=1, channels=64, est_heads=2,
            est_head_dim=32, mid_blocks=2, block_layers=1,
        ),
        hift=HiftConfig(channels=32, f0_channels=32),
    )
