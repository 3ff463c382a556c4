"""The options of a call: one dataclass, and keywords that an editor completes."""

import dataclasses
from threading import Event

import pytest

from chatterbox_opt import keywords
from chatterbox_opt.calls import GenerateOptions
from chatterbox_opt.options import SamplingOptions
from chatterbox_opt.switches import SWITCHES


def keys_of(typed: type) -> set[str]:
    return set(typed.__optional_keys__)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(n_cfm_timesteps=0), "n_cfm_timesteps=0"),
        (dict(max_chars=3), "max_chars=3"),
        (dict(takes=0), "takes=0"),
        (dict(retries=-1), "retries=-1"),
        (dict(score=len), "score chooses among takes"),
        (dict(cancel=True), "cancel=True"),
        (dict(progress=5), "progress=5"),
    ],
)
def test_errors_name_the_argument(wrong, message):
    with pytest.raises(ValueError, match=message):
        GenerateOptions(**wrong)


def test_one_take_needs_no_selection():
    assert GenerateOptions().selection is None
    assert GenerateOptions(takes=3).selection.count == 3


def test_a_batchs_keywords_are_the_calls_and_the_texts():
    cancel = Event()
    own, others = GenerateOptions.separate(dict(cancel=cancel, temperature=[0.5, 0.7], takes=2, markup=True))
    assert own == dict(cancel=cancel, takes=2)
    assert others == dict(temperature=[0.5, 0.7], markup=True)


def test_keywords_for_editors_are_those_of_the_dataclasses():
    """The keywords an editor shows are those that the dataclasses have, no more and no fewer."""
    call = {f.name for f in dataclasses.fields(GenerateOptions)}
    sampling = {f.name for f in dataclasses.fields(SamplingOptions)}
    assert keys_of(keywords.CallKeywords) == call
    assert sampling == keys_of(keywords.SamplingKeywords) < keys_of(keywords.TextKeywords)
    assert keys_of(keywords.TextKeywords) == keys_of(keywords.TextsKeywords)
    assert keys_of(keywords.BatchKeywords) == call | keys_of(keywords.TextsKeywords) | {"exaggeration"}
    assert keys_of(keywords.EngineKeywords) == set(SWITCHES)
