"""The keys and shapes of the published files, for any size of model.

A file is checked against them before it is read, so that errors name the file's own keys; random checkpoints are
generated from them.
"""

from __future__ import annotations

from itertools import pairwise

from ..config import (
    MEL_BINS,
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

Shape = tuple[int, ...]
Layout = dict[str, Shape]

BATCH_COUNT = ".num_batches_tracked"  # the only keys that are int64; a BatchNorm's history, unused
MIXER = "time_embed_mixer.weight"  # only in a meanflow decoder
ESTIMATOR = "flow.decoder.estimator."
MEANFLOW_KEY = ESTIMATOR + MIXER
COMPUTED = ("tokenizer._mel_filters", "tokenizer.window")  # constants of s3gen, which a file may lack


def spare_in_s3gen(key: str) -> bool:
    """Whether a file may lack this key."""
    return key in COMPUTED or key.endswith(BATCH_COUNT)


def t3(cfg: T3Config) -> Layout:
    backbone = _gpt2(cfg) if cfg.is_gpt else _llama(cfg)
    out = _under("tfmr", backbone) | _linear("cond_enc.spkr_enc", cfg.dim, SPEAKER_DIM)
    if not cfg.is_gpt:
        out |= _under("cond_enc", {"emotion_adv_fc.weight": (cfg.dim, 1)} | _perceiver(cfg))
        out |= {"text_pos_emb.emb.weight": (cfg.text_positions, cfg.dim)}
        out |= {"speech_pos_emb.emb.weight": (cfg.speech_positions, cfg.dim)}
    for part, size in (("text", cfg.text_vocab), ("speech", cfg.speech_vocab)):
        out |= {f"{part}_emb.weight": (size, cfg.dim), f"{part}_head.weight": (size, cfg.dim)}
    return out | ({"speech_head.bias": (cfg.speech_vocab,)} if cfg.is_gpt else {})


def _llama(cfg: T3Config) -> Layout:
    d, ff = cfg.dim, cfg.ff
    layer: Layout = {f"self_attn.{p}_proj.weight": (d, d) for p in "qkvo"}
    layer |= {"mlp.gate_proj.weight": (ff, d), "mlp.up_proj.weight": (ff, d), "mlp.down_proj.weight": (d, ff)}
    layer |= {"input_layernorm.weight": (d,), "post_attention_layernorm.weight": (d,)}
    return {"embed_tokens.weight": (8, d), "norm.weight": (d,)} | _repeat("layers", cfg.layers, layer)


def _gpt2(cfg: T3Config) -> Layout:
    d, ff = cfg.dim, cfg.ff
    # These weights are (in, out).
    layer = _norm("ln_1", d) | _norm("ln_2", d)
    for name, n_in, n_out in (("attn.c_attn", d, 3 * d), ("attn.c_proj", d, d), ("mlp.c_fc", d, ff), ("mlp.c_proj",
        ff, d)):
        layer |= {f"{name}.weight": (n_in, n_out), f"{name}.bias": (n_out,)}
    tables = {"wte.weight": (cfg.text_vocab, d), "wpe.weight": (cfg.max_positions, d)}
    return tables | _repeat("h", cfg.layers, layer) | _norm("ln_f", d)


def _perceiver(cfg: T3Config) -> Layout:
    attn = _norm("norm", cfg.dim)
    for name in ("to_q", "to_k", "to_v", "proj_out"):
        attn |= _linear(name, cfg.dim, cfg.dim)
    return {"perceiver.pre_attention_query": (1, cfg.perceiver_queries, cfg.dim)} | _under("perceiver.attn", attn)


def voice_encoder(cfg: VoiceEncoderConfig) -> Layout:
    gates = 4 * cfg.hidden
    out: Layout = {"similarity_weight": (1,), "similarity_bias": (1,)}
    for i in range(cfg.layers):
        out |= {f"lstm.weight_ih_l{i}": (gates, cfg.hidden if i else cfg.n_mels), f"lstm.weight_hh_l{i}": (gates,
            cfg.hidden)}
        out |= {f"lstm.bias_ih_l{i}": (gates,), f"lstm.bias_hh_l{i}": (gates,)}
    return out | _linear("proj", SPEAKER_DIM, cfg.hidden)


def s3gen(config: ModelConfig) -> Layout:
    return (
        _under("tokenizer", s3_tokenizer(config.s3_tokenizer))
        | _under("speaker_encoder", campplus(config.campplus))
        | _under("flow", flow(config.flow))
        | _under("mel2wav", hift(config.hift))
    )


def s3_tokenizer(cfg: S3TokenizerConfig) -> Layout:
    d = cfg.dim
    block = _linear("attn.query", d, d) | {"attn.key.weight": (d, d)} | _linear("attn.value", d,
        d) | _linear("attn.out", d, d)
    block |= {"attn.fsmn_block.weight": (d, 1, 31)} | _norm("attn_ln", d) | _norm("mlp_ln", d)
    block |= _linear("mlp.0", 4 * d, d) | _linear("mlp.2", d, 4 * d)
    out = {"_mel_filters": (cfg.n_mels, 201), "window": (400,)}
    out |= _linear("encoder.conv1", d, cfg.n_mels, 3) | _linear("encoder.conv2", d, d, 3)
    return out | _repeat("encoder.blocks", cfg.layers, block) | _linear("quantizer._codebook.project_down", 8, d)


def campplus(cfg: CampplusConfig) -> Layout:
    c = cfg.head_channels
    head = {"conv1.weight": (c, 1, 3, 3), "conv2.weight": (c, c, 3, 3)} | _batch_norm("bn1", c) | _batch_norm("bn2", c)
    block = {"conv1.weight": (c, c, 3, 3), "conv2.weight": (c, c, 3, 3)} | _batch_norm("bn1", c) | _batch_norm("bn2", c)
    shortcut = {"shortcut.0.weight": (c, c, 1, 1)} | _batch_norm("shortcut.1", c)
    for layer in ("layer1", "layer2"):
        head |= _repeat(layer, 2, block) | _under(f"{layer}.0", shortcut)
    return _under("head", head) | _under("xvector", _xvector(cfg))


def _xvector(cfg: CampplusConfig) -> Layout:
    width, g, mid = cfg.init_channels, cfg.growth, cfg.bottleneck * cfg.growth
    out: Layout = {"tdnn.linear.weight": (width, cfg.head_channels * (cfg.feat_dim // 8), 5)}
    out |= _batch_norm("tdnn.nonlinear.batchnorm", width)
    for i, layers in enumerate(cfg.block_layers, 1):
        for j in range(layers):
            cam = {"linear_local.weight": (g, mid, 3)} | _linear("linear1", mid // 2, mid, 1) | _linear("linear2", g,
                mid // 2, 1)
            layer = _batch_norm("nonlinear1.batchnorm", width + j * g) | {"linear1.weight": (mid, width + j * g, 1)}
            layer |= _batch_norm("nonlinear2.batchnorm", mid) | _under("cam_layer", cam)
            out |= _under(f"block{i}.tdnnd{j + 1}", layer)
        width += layers * g
        out |= _batch_norm(f"transit{i}.nonlinear.batchnorm", width) | {f"transit{i}.linear.weight": (width // 2,
            width, 1)}
        width //= 2
    out |= _batch_norm("out_nonlinear.batchnorm", width) | {"dense.linear.weight": (XVECTOR_DIM, 2 * width, 1)}
    return out | _batch_norm("dense.nonlinear.batchnorm", XVECTOR_DIM, affine=False)


def flow(cfg: FlowConfig) -> Layout:
    d = cfg.dim
    out: Layout = {"input_embedding.weight": (SPEECH_CODES, d)} | _linear("spk_embed_affine_layer", MEL_BINS,
        XVECTOR_DIM)
    out |= _under("encoder", _conformer(cfg)) | _linear("encoder_proj", MEL_BINS, d)
    return out | _under("decoder.estimator", _estimator(cfg))


def _conformer(cfg: FlowConfig) -> Layout:
    d, head = cfg.dim, cfg.dim // cfg.heads
    layer: Layout = {"self_attn.pos_bias_u": (cfg.heads, head), "self_attn.pos_bias_v": (cfg.heads, head)}
    for name in ("linear_q", "linear_k", "linear_v", "linear_out"):
        layer |= _linear(f"self_attn.{name}", d, d)
    layer |= {"self_attn.linear_pos.weight": (d, d)} | _linear("feed_forward.w_1", cfg.ff,
        d) | _linear("feed_forward.w_2", d, cfg.ff)
    layer |= _norm("norm_ff", d) | _norm("norm_mha", d)
    out = _repeat("encoders", cfg.layers, layer) | _repeat("up_encoders", cfg.up_layers, layer) | _norm("after_norm", d)
    for name in ("embed", "up_embed"):
        out |= _linear(f"{name}.out.0", d, d) | _norm(f"{name}.out.1", d)
    out |= _linear("pre_lookahead_layer.conv1", d, d, cfg.pre_lookahead + 1) | _linear("pre_lookahead_layer.conv2", d,
        d, 3)
    return out | _linear("up_layer.conv", d, d, 5)


def _estimator(cfg: FlowConfig) -> Layout:
    c, time = cfg.channels, 4 * cfg.channels
    wide = 4 * MEL_BINS  # noise, text, speaker and prompt side by side
    out = _linear("time_mlp.linear_1", time, wide) | _linear("time_mlp.linear_2", time, time)
    if cfg.meanflow:
        out |= {MIXER: (time, 2 * time)}
    out |= _unet_block("down_blocks.0", wide, cfg) | _linear("down_blocks.0.2", c, c, 3)
    for i in range(cfg.mid_blocks):
        out |= _unet_block(f"mid_blocks.{i}", c, cfg)
    out |= _unet_block("up_blocks.0", 2 * c, cfg) | _linear("up_blocks.0.2", c, c, 3)
    return out | _conv_norm("final_block", c, c) | _linear("final_proj", MEL_BINS, c, 1)


def _unet_block(name: str, n_in: int, cfg: FlowConfig) -> Layout:
    c, inner = cfg.channels, cfg.est_heads * cfg.est_head_dim
    resnet = _linear("mlp.1", c, 4 * c) | _conv_norm("block1", c, n_in) | _conv_norm("block2", c,
        c) | _linear("res_conv", c, n_in, 1)
    attend = _norm("norm1", c) | {f"attn1.to_{p}.weight": (inner, c) for p in "qkv"} | _linear("attn1.to_out.0", c,
        inner)
    attend |= _norm("norm3", c) | _linear("ff.net.0.proj", 4 * c, c) | _linear("ff.net.2", c, 4 * c)
    return _under(f"{name}.0", resnet) | _repeat(f"{name}.1", cfg.block_layers, attend)


def _conv_norm(name: str, n_out: int, n_in: int) -> Layout:
    return _linear(f"{name}.block.0", n_out, n_in, 3) | _norm(f"{name}.block.2", n_out)


def hift(cfg: HiftConfig) -> Layout:
    bins = cfg.n_fft + 2  # real and imaginary, or magnitude and phase
    widths = [cfg.channels >> i for i in range(len(cfg.up_rates) + 1)]
    out = _linear("m_source.l_linear", 1, cfg.harmonics + 1) | _weight_normed("conv_pre", widths[0], MEL_BINS, 7)
    strides = [1, *cfg.up_rates[:0:-1]]  # how much finer the source is than each stage, from the last to the first
    for i, (n_in, c) in enumerate(pairwise(widths)):
        out |= _weight_normed(f"ups.{i}", n_in, c, cfg.up_kernels[i]) | {f"ups.{i}.bias": (c,)}
        stride = 1
        for s in strides[: len(strides) - i]:
            stride *= s
        out |= _linear(f"source_downs.{i}", c, bins, 2 * stride if stride > 1 else 1)
        out |= _res_block(f"source_resblocks.{i}", c, cfg.source_kernels[i], len(cfg.source_dilations[i]))
        for j, (kernel, dilations) in enumerate(zip(cfg.res_kernels, cfg.res_dilations)):
            out |= _res_block(f"resblocks.{i * len(cfg.res_kernels) + j}", c, kernel, len(dilations))
    out |= _weight_normed("conv_post", bins, widths[-1], 7)
    for i in range(5):
        out |= _weight_normed(f"f0_predictor.condnet.{2 * i}", cfg.f0_channels, cfg.f0_channels if i else MEL_BINS, 3)
    return out | _linear("f0_predictor.classifier", 1, cfg.f0_channels)


def _res_block(name: str, c: int, kernel: int, n: int) -> Layout:
    out: Layout = {}
    for i in range(n):
        for part in "12":
            out |= _weight_normed(f"{name}.convs{part}.{i}", c, c,
                kernel) | {f"{name}.activations{part}.{i}.alpha": (c,)}
    return out


def _weight_normed(name: str, n_out: int, n_in: int, kernel: int) -> Layout:
    """Returns the keys of a weight-normed layer: magnitude and direction, along the first axis (the inputs of a
    transposed convolution)."""
    at = f"{name}.parametrizations.weight.original"
    return {f"{name}.bias": (n_out,), f"{at}0": (n_out, 1, 1), f"{at}1": (n_out, n_in, kernel)}


def _linear(name: str, n_out: int, n_in: int, *kernel: int) -> Layout:
    return {f"{name}.weight": (n_out, n_in, *kernel), f"{name}.bias": (n_out,)}


def _norm(name: str, size: int) -> Layout:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def _batch_norm(name: str, size: int, affine: bool = True) -> Layout:
    running: Layout = {f"{name}.running_mean": (size,), f"{name}.running_var": (size,), f"{name}{BATCH_COUNT}": ()}
    return running | (_norm(name, size) if affine else {})


def _under(prefix: str, layout: Layout) -> Layout:
    return {f"{prefix}.{key}": shape for key, shape in layout.items()}


def _repeat(name: str, n: int, layer: Layout) -> Layout:
    out: Layout = {}
    for i in range(n):
        out |= _under(f"{name}.{i}", layer)
    return out
