"""T3 against upstream's on the same weights, float32."""

import pytest
import torch
from t3_pairs import pair, text, voice

from chatterbox_opt.models.layers import rope_table

pytestmark = pytest.mark.kernels


def upstream_cond(v):
    from chatterbox.models.t3.modules.cond_enc import T3Cond

    return T3Cond(v.speaker_emb, None, v.cond_prompt_speech_tokens, None, v.emotion_adv)


@pytest.mark.parametrize("family", ["tts", "turbo"])
def test_same_logits_over_text_and_speech(family):
    upstream, ours, config = pair(family)
    v, ids = voice(config), text(config, 20)
    speech = torch.randint(0, 6561, (1, 30), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        embeds, _ = upstream.prepare_input_embeds(t3_cond=upstream_cond(v), text_tokens=ids[None], speech_tokens=speech)
        wanted = upstream.speech_head(upstream.tfmr(inputs_embeds=embeds).last_hidden_state)
        prefix = ours.voice_prefix(v.speaker_emb, v.cond_prompt_speech_tokens, v.emotion_adv)
        x = ours.text_emb(ids[None])
        y = ours.speech_emb(speech)
        if not config.is_gpt:
            x = x + ours.text_pos_emb(torch.arange(x.shape[1]))
            y = y + ours.speech_pos_emb(torch.arange(y.shape[1]))
        sequence = torch.cat([prefix, x, y], 1)
        got = ours.logits(ours(sequence, torch.arange(sequence.shape[1])[None]))
    assert wanted.std() > 1, "flat logits would prove nothing"
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_conditioning_alone():
    upstream, ours, config = pair("tts")
    v = voice(config)
    with torch.inference_mode():
        wanted = upstream.prepare_conditioning(upstream_cond(v))
        got = ours.voice_prefix(v.speaker_emb, v.cond_prompt_speech_tokens, v.emotion_adv)
    assert got.shape[1] == config.prefix_len
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_unconditional_rows_keep_positions_and_lose_text():
    _, ours, config = pair("tts")
    ids = text(config, 12)
    with torch.inference_mode():
        rows = ours.text_part(ids[None].expand(2, -1), torch.tensor([False, True]))
        other = ours.text_part(text(config, 12, seed=9)[None].expand(2, -1), torch.tensor([False, True]))
    assert not torch.equal(rows[0], other[0])
    assert torch.equal(rows[1], other[1])
    assert torch.equal(rows[0, -1], rows[0, -2]), "the start token stands twice, at one position"


def test_rope_scaling_is_llama3s():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from chatterbox_opt.config import MODELS

    config = MODELS["tts"].t3
    theirs = transformers.LlamaConfig(
        hidden_size=1024, num_attention_heads=16, head_dim=64, max_position_embeddings=131072,
        rope_parameters=dict(rope_theta=500000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=8192),
    )
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    cos, sin = LlamaRotaryEmbedding(theirs)(torch.zeros(1, 1), torch.arange(4096)[None])
    mine = rope_table(config, 4096, torch.device("cpu"))
    assert (mine[..., 0] - cos[0, :, :32]).abs().max() < 1e-5
    assert (mine[..., 1] - sin[0, :, :32]).abs().max() < 1e-5
