"""Rules that turn the keys of published files into those of the networks."""

import pytest
import torch

from chatterbox_opt.weights.keymap import Rule, cat, drop, remap, rename, transpose, under

A, B, C = torch.ones(2, 3), torch.full((4, 3), 2.0), torch.arange(6.0).view(2, 3)


def test_rename_drop_fuse_and_pass_through():
    state = {"layers.0.q": A, "layers.0.k": B, "layers.1.q": A, "layers.1.k": B, "old": C, "gone.here": C, "kept": C}
    rules = [
        Rule(("layers.{}.q", "layers.{}.k"), "layers.{}.qk", cat),
        rename("old", "new"),
        *drop("gone.{}"),
        Rule(("kept",), "kept", transpose),
    ]
    out = remap(state, rules)
    assert set(out) == {"layers.0.qk", "layers.1.qk", "new", "kept"}
    assert torch.equal(out["layers.1.qk"], torch.cat([A, B]))
    assert torch.equal(out["kept"], C.t())
    assert len(state) == 7, "the state dict that was given is left as it is"
    assert remap(state, rules, consume=True) is state


def test_rules_of_a_part_within_the_whole():
    rules = under("flow", [rename("a.{}.b", "c.{}"), *drop("d")])
    assert set(remap({"flow.a.3.b": A, "flow.d": B, "a.3.b": C}, rules)) == {"flow.c.3", "a.3.b"}


def test_one_source_may_feed_two_targets():
    rules = [Rule(("w", "b"), "sum", torch.add, keep=True), Rule(("w", "b"), "product", torch.mul)]
    assert {k: float(v) for k, v in remap({"w": torch.tensor(3.0), "b": torch.tensor(2.0)}, rules).items()} == {
        "sum": 5.0, "product": 6.0,
    }


def test_half_a_fusion_is_an_error():
    with pytest.raises(ValueError, match=r"has x\.0\.q but not x\.0\.k"):
        remap({"x.0.q": A}, [Rule(("x.{}.q", "x.{}.k"), "x.{}.qk", cat)])
