"""Real upstream objects of any size, with the weights of a checkpoint folder, for parity tests of whole calls.

Upstream's constructors have fixed sizes; here its own parts are assembled with those of a ModelConfig.
`load(folder, family)` gives a whole model, the functions below single networks, and `converted` this package's network
with the same weights. Callers skip where chatterbox-tts is not installed (fixture `upstream`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import nn

from chatterbox_opt.config import (
    MODELS,
    SPEAKER_DIM,
    SPEECH_CODES,
    XVECTOR_DIM,
    CampplusConfig,
    FlowConfig,
    HiftConfig,
    ModelConfig,
    S3TokenizerConfig,
    T3Config,
    VoiceEncoderConfig,
)
from chatterbox_opt.weights.keymap import Rule, remap

UNREAD = ("tfmr.embed_tokens.weight", "text_head.weight")  # Mini leaves them out
T3_FILES = {"tts": "t3_cfg", "mtl": "t3_mtl23ls_v2", "turbo": "t3_turbo_v1", "nano": "t3_nano_v1"}


class NoWatermark:
    """Stands in for Perth, so that waves can be compared sample by sample."""

    def apply_watermark(self, wav: Any, sample_rate: int, **_: Any) -> Any:
        return wav


@contextmanager
def assembling(watermark: bool = False) -> Iterator[None]:
    """While upstream builds a model: its networks draw no numbers, which the files would replace, and nothing marks."""
    undrawn = {name: lambda tensor, *_, **__: tensor for name in ("normal_", "uniform_")}
    with (
        mock.patch.multiple(torch.Tensor, **undrawn),
        mock.patch("perth.PerthImplicitWatermarker", NoWatermark) if not watermark else nullcontext(),
    ):
        yield


def load(folder: str | Path, family: str, watermark: bool = False) -> Any:
    """ChatterboxTTS, ChatterboxMultilingualTTS, ChatterboxTurboTTS or ChatterboxVC (`family` "vc") on the CPU."""
    folder = Path(folder)
    config = read_config(folder, family)
    with assembling(watermark):
        return _assemble(folder, config, family)


def _assemble(folder: Path, config: ModelConfig, family: str) -> Any:
    s3 = _load(s3gen(config), _state(folder, "s3gen_meanflow" if config.flow.meanflow else "s3gen"))
    if family == "vc":
        from chatterbox.vc import ChatterboxVC

        return ChatterboxVC(s3, "cpu", torch.load(folder / "conds.pt", weights_only=True)["gen"])
    cls, conditionals = _classes(family)
    return cls(
        _load(t3(config.t3), _state(folder, T3_FILES[family])),
        s3,
        _load(voice_encoder(config.voice_encoder), _state(folder, "ve")),
        tokenizer(folder, family),
        "cpu",
        conditionals.load(folder / "conds.pt"),
    )


def read_config(folder: Path, family: str) -> ModelConfig:
    file = folder / "config.json"
    if file.exists():
        return ModelConfig.from_dict(json.loads(file.read_text()))
    return MODELS["tts" if family == "vc" else family]


def tokenizer(folder: Path, family: str) -> Any:
    from chatterbox.models.tokenizers import EnTokenizer, MTLTokenizer

    if family == "tts":
        return EnTokenizer(str(folder / "tokenizer.json"))
    if family == "mtl":  # upstream looks for the table in its own cache; it gets the folder's
        with mock.patch(
            "chatterbox.models.tokenizers.tokenizer.hf_hub_download", lambda filename, **_: str(folder / filename)
        ):
            return MTLTokenizer(str(folder / "grapheme_mtl_merged_expanded_v1.json"))
    from transformers import AutoTokenizer

    turbo = AutoTokenizer.from_pretrained(folder)
    turbo.pad_token = turbo.pad_token or turbo.eos_token
    return turbo


def converted(upstream: nn.Module, network: type[nn.Module], cfg: Any, rules: Iterable[Rule]) -> nn.Module:
    """Returns this package's network with the weights of upstream's."""
    with torch.device("meta"):
        ours = network(cfg)
    state = {name: tensor.detach() for name, tensor in upstream.state_dict().items()}
    ours.load_state_dict(remap(state, rules), strict=True, assign=True)
    return ours.eval().requires_grad_(False)


# ---- the networks --------------------------------------------------------------------------------


def t3(cfg: T3Config) -> nn.Module:
    from chatterbox.models.t3 import T3

    with _sizes(cfg) as hp:
        return T3(hp)


@contextmanager
def _sizes(cfg: T3Config) -> Iterator[Any]:
    """Upstream's T3Config for this size; its table of backbones and its perceiver are changed while it builds."""
    from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
    from chatterbox.models.t3.modules import cond_enc
    from chatterbox.models.t3.modules.perceiver import Perceiver

    hp = _hyper(cfg)
    if cfg.is_gpt:
        changes = dict(n_embd=cfg.dim, hidden_size=cfg.dim, n_head=cfg.heads, n_layer=cfg.layers, n_inner=cfg.ff)
    else:
        changes = dict(
            hidden_size=cfg.dim, intermediate_size=cfg.ff, num_hidden_layers=cfg.layers, head_dim=cfg.head_dim,
            num_attention_heads=cfg.heads, num_key_value_heads=cfg.heads,
        )
    sized = {hp.llama_config_name: {**LLAMA_CONFIGS[hp.llama_config_name], **changes}}
    perceiver = functools.partial(Perceiver, cfg.perceiver_queries, cfg.dim, cfg.dim, cfg.perceiver_heads)
    with mock.patch.dict(LLAMA_CONFIGS, sized), mock.patch.object(cond_enc, "Perceiver", perceiver):
        yield hp


def _hyper(cfg: T3Config) -> Any:
    from chatterbox.models.t3.modules.t3_config import T3Config as Hyper

    class Sized(Hyper):
        is_multilingual = False  # the wheel's analyzer forces its own ends; the repository no longer has it

    hp = Sized(text_tokens_dict_size=cfg.text_vocab)
    hp.speech_tokens_dict_size, hp.speech_cond_prompt_len = cfg.speech_vocab, cfg.prompt_tokens
    hp.max_text_tokens, hp.max_speech_tokens = cfg.text_positions - 2, cfg.speech_positions - 4  # upstream adds those
    if cfg.is_gpt:
        hp.llama_config_name = "GPT2_medium"
        hp.input_pos_emb, hp.use_perceiver_resampler, hp.emotion_adv = None, False, False
    return hp


def voice_encoder(cfg: VoiceEncoderConfig) -> nn.Module:
    from chatterbox.models.voice_encoder import VoiceEncoder

    model = VoiceEncoder()
    model.lstm = nn.LSTM(cfg.n_mels, cfg.hidden, num_layers=cfg.layers, batch_first=True)
    model.proj = nn.Linear(cfg.hidden, SPEAKER_DIM)
    return model


def s3gen(config: ModelConfig) -> nn.Module:
    from chatterbox.models.s3gen import s3gen as module
    from chatterbox.models.s3gen.const import S3GEN_SR

    model = module.S3Token2Wav.__new__(module.S3Token2Wav)
    nn.Module.__init__(model)
    model.tokenizer = s3_tokenizer(config.s3_tokenizer)
    model.mel_extractor = module.mel_spectrogram
    model.speaker_encoder = campplus(config.campplus)
    model.meanflow = config.flow.meanflow
    model.flow = flow(config.flow)
    model.mel2wav = hift(config.hift)
    model.resamplers, model.estimator_dtype = {}, "fp32"
    n = S3GEN_SR // 50
    fade = torch.cat([torch.zeros(n), (torch.cos(torch.linspace(torch.pi, 0, n)) + 1) / 2])
    model.register_buffer("trim_fade", fade, persistent=False)
    return model


def s3_tokenizer(cfg: S3TokenizerConfig) -> nn.Module:
    import librosa
    from chatterbox.models.s3tokenizer import S3_SR
    from chatterbox.models.s3tokenizer.s3tokenizer import S3Tokenizer
    from s3tokenizer.model_v2 import ModelConfig as Sizes
    from s3tokenizer.model_v2 import S3TokenizerV2, precompute_freqs_cis

    model = S3Tokenizer.__new__(S3Tokenizer)
    sizes = Sizes(n_mels=cfg.n_mels, n_audio_state=cfg.dim, n_audio_head=cfg.heads, n_audio_layer=cfg.layers)
    S3TokenizerV2.__init__(model, "speech_tokenizer_v2_25hz", sizes)
    model.encoder.freqs_cis = precompute_freqs_cis(cfg.dim // cfg.heads, 2048)
    model.n_fft = 400
    filters = librosa.filters.mel(sr=S3_SR, n_fft=model.n_fft, n_mels=cfg.n_mels)
    model.register_buffer("_mel_filters", torch.FloatTensor(filters))
    model.register_buffer("window", torch.hann_window(model.n_fft))
    return model


def campplus(cfg: CampplusConfig) -> nn.Module:
    from chatterbox.models.s3gen import xvector as x

    model = x.CAMPPlus.__new__(x.CAMPPlus)
    nn.Module.__init__(model)
    model.output_level = "segment"
    model.head = x.FCM(m_channels=cfg.head_channels, feat_dim=cfg.feat_dim)
    width = cfg.init_channels
    model.xvector = nn.Sequential()
    model.xvector.add_module("tdnn", x.TDNNLayer(model.head.out_channels, width, 5, stride=2, padding=-1))
    for i, (layers, dilation) in enumerate(zip(cfg.block_layers, (1, 2, 2)), 1):
        block = x.CAMDenseTDNNBlock(layers, width, cfg.growth, cfg.bottleneck * cfg.growth, 3, dilation=dilation)
        model.xvector.add_module(f"block{i}", block)
        width += layers * cfg.growth
        model.xvector.add_module(f"transit{i}", x.TransitLayer(width, width // 2, bias=False))
        width //= 2
    model.xvector.add_module("out_nonlinear", x.get_nonlinear("batchnorm-relu", width))
    model.xvector.add_module("stats", x.StatsPool())
    model.xvector.add_module("dense", x.DenseLayer(2 * width, XVECTOR_DIM, config_str="batchnorm_"))
    return model


def flow(cfg: FlowConfig) -> nn.Module:
    from chatterbox.models.s3gen.configs import CFM_PARAMS
    from chatterbox.models.s3gen.decoder import ConditionalDecoder
    from chatterbox.models.s3gen.flow import CausalMaskedDiffWithXvec
    from chatterbox.models.s3gen.flow_matching import CausalConditionalCFM

    estimator = ConditionalDecoder(
        in_channels=320, out_channels=80, causal=True, channels=[cfg.channels], dropout=0.0,
        attention_head_dim=cfg.est_head_dim, n_blocks=cfg.block_layers, num_mid_blocks=cfg.mid_blocks,
        num_heads=cfg.est_heads, act_fn="gelu", meanflow=cfg.meanflow,
    )
    decoder = CausalConditionalCFM(spk_emb_dim=80, cfm_params=CFM_PARAMS, estimator=estimator)
    return CausalMaskedDiffWithXvec(
        input_size=cfg.dim, spk_embed_dim=XVECTOR_DIM, vocab_size=SPEECH_CODES, encoder=_conformer(cfg), decoder=decoder
    )


def _conformer(cfg: FlowConfig) -> nn.Module:
    from chatterbox.models.s3gen.transformer import upsample_encoder as up

    model = up.UpsampleConformerEncoder(
        input_size=cfg.dim, output_size=cfg.dim, attention_heads=cfg.heads, linear_units=cfg.ff,
        num_blocks=max(cfg.layers, cfg.up_layers), dropout_rate=0.1, positional_dropout_rate=0.1,
        attention_dropout_rate=0.1, normalize_before=True, input_layer="linear", pos_enc_layer_type="rel_pos_espnet",
        selfattention_layer_type="rel_selfattn", use_cnn_module=False, macaron_style=False,
    )
    # Its second half has a fixed number of layers, and two of its convolutions a fixed width.
    model.up_encoders = model.up_encoders[: cfg.up_layers]
    model.encoders = model.encoders[: cfg.layers]
    model.pre_lookahead_layer = up.PreLookaheadLayer(channels=cfg.dim, pre_lookahead_len=cfg.pre_lookahead)
    model.up_layer = up.Upsample1D(channels=cfg.dim, out_channels=cfg.dim, stride=2)
    return model


def hift(cfg: HiftConfig) -> nn.Module:
    from chatterbox.models.s3gen.const import S3GEN_SR
    from chatterbox.models.s3gen.f0_predictor import ConvRNNF0Predictor
    from chatterbox.models.s3gen.hifigan import HiFTGenerator

    return HiFTGenerator(
        base_channels=cfg.channels, nb_harmonics=cfg.harmonics, sampling_rate=S3GEN_SR,
        nsf_alpha=cfg.sine_amp, nsf_sigma=cfg.noise_std, nsf_voiced_threshold=cfg.voiced_threshold,
        upsample_rates=list(cfg.up_rates), upsample_kernel_sizes=list(cfg.up_kernels),
        istft_params={"n_fft": cfg.n_fft, "hop_len": cfg.hop},
        resblock_kernel_sizes=list(cfg.res_kernels), resblock_dilation_sizes=[list(d) for d in cfg.res_dilations],
        source_resblock_kernel_sizes=list(cfg.source_kernels),
        source_resblock_dilation_sizes=[list(d) for d in cfg.source_dilations],
        f0_predictor=ConvRNNF0Predictor(cond_channels=cfg.f0_channels),
    )


# ---- files and classes ---------------------------------------------------------------------------


def _state(folder: Path, name: str) -> dict[str, torch.Tensor]:
    file = folder / f"{name}.safetensors"
    return load_file(file) if file.exists() else torch.load(folder / f"{name}.pt", weights_only=True)


def _load(model: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    nothing_reads = {k: v for k, v in model.state_dict().items() if k in UNREAD and k not in state}
    model.load_state_dict(state | nothing_reads, strict=True)
    if "tfmr.wte.weight" in state:
        del model.tfmr.wte
    return model.eval()


def _classes(family: str) -> tuple[type, type]:
    if family == "tts":
        from chatterbox.tts import ChatterboxTTS, Conditionals

        return ChatterboxTTS, Conditionals
    if family == "mtl":
        from chatterbox.mtl_tts import ChatterboxMultilingualTTS, Conditionals

        return ChatterboxMultilingualTTS, Conditionals
    from chatterbox.tts_turbo import ChatterboxTurboTTS, Conditionals

    return ChatterboxTurboTTS, Conditionals

