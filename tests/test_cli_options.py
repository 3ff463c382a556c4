"""The options of the commands: their help, and what is said to those who mistype them."""

import argparse

import pytest

from chatterbox_opt.cli import main, parser
from chatterbox_opt.tts import OptimizedChatterboxTTS
from chatterbox_opt.tts_turbo import OptimizedChatterboxTurboTTS

TOP = parser()
(COMMANDS,) = (action.choices for action in TOP._actions if isinstance(action, argparse._SubParsersAction))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help_with_its_default(name):
    text = " ".join(COMMANDS[name].format_help().split())
    for action in COMMANDS[name]._actions:
        assert action.help, action.dest
        if isinstance(action.default, (str, int, float)) and not isinstance(action.default, bool):
            assert f"(default: {action.default})" in text or "default" in action.help or action.nargs == 0, action.dest


def test_every_parser_takes_whole_options_only():
    assert not TOP.allow_abbrev
    assert not any(command.allow_abbrev for command in COMMANDS.values())


def test_the_help_of_say_has_the_defaults_of_the_models():
    said = " ".join(COMMANDS["say"].format_help().split())
    model, turbo = OptimizedChatterboxTTS.defaults, OptimizedChatterboxTurboTTS.defaults
    assert f"0: no guidance, faster; by default {model.cfg_weight}" in said
    assert f"by default {model.temperature}" in said
    assert model.temperature == turbo.temperature
    assert f"by default {model.top_p:g}, of turbo and nano {turbo.top_p}" in said
    assert f"by default {model.max_new_tokens}, or {model.max_new_tokens / 25:g} s" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["say", "--model", "mini", "Hello.", "--sede", "7"], "there is no option --sede; did you mean --seed?"),
        (["say", "Hello.", "--sede=7"], "there is no option --sede; did you mean --seed?"),
        (["say", "Hello.", "--see", "7"], "there is no option --see; did you mean --seed?"),
        (["say", "Hello.", "there", "--modle", "mini"], "there is no option --modle; did you mean --model?"),
        (["say", "Hello.", "--zzz"], "there is no option --zzz\n"),
        (["say", "Hello", "there", "--seed", "7", "friend"], "too many words: there friend; put the text in quotes"),
        (["convert", "my", "file.wav"], "too many words: file.wav; put a name with blanks in quotes"),
    ],
)
def test_a_wrong_option_shows_the_commands_usage_and_what_was_meant(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"usage: chatterbox-opt {words[0]} ")
    assert f"chatterbox-opt {words[0]}: error: {message}" in err
