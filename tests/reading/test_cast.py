"""The cast of a script, from a file."""

from pathlib import Path

import pytest

from chatterbox_opt.reading.cast import Role, cast_of, load_cast


def test_a_cast_file(tmp_path):
    path = tmp_path / "voices.toml"
    path.write_text(
        '[narrator]\nseed = 7\n[Anna]\nvoice = "anna.wav"\nexaggeration = 0.7\ncfg_weight = 0.3\n'
        '["Old Ben"]\nlanguage = "fr"\n'
    )
    assert load_cast(path) == {
        "narrator": Role(None, 7),
        "Anna": Role(tmp_path / "anna.wav", 0, None, {"exaggeration": 0.7, "cfg_weight": 0.3}),
        "Old Ben": Role(None, 0, "fr"),
    }
    assert cast_of(path) == load_cast(path)
    assert cast_of({"Anna": "anna.wav", "Ben": Role(seed=3)}) == {"Anna": Role("anna.wav"), "Ben": Role(seed=3)}
    assert cast_of(None) == {}
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as some editors begin a file
    assert load_cast(path)["narrator"] == Role(None, 7)


def test_a_role_has_respellings_and_takes_of_its_own(tmp_path):
    path = tmp_path / "voices.toml"
    path.write_text(
        '[Anna]\npronounce = "names.toml"\ntakes = 4\n[Ben]\nspoken = true\nretries = 1\n'
        '[Ben.pronounce]\nSQL = "sequel"\n'
    )
    assert load_cast(path) == {
        "Anna": Role(options={"pronounce": tmp_path / "names.toml", "takes": 4}),
        "Ben": Role(options={"spoken": True, "retries": 1, "pronounce": {"SQL": "sequel"}}),
    }


def test_a_mapping_has_the_entries_of_a_file():
    class Voice:
        t3 = gen = None

    voice = Voice()
    given = {"Anna": {"voice": "anna.wav", "seed": 3, "takes": 2}, "Ben": {"voice": voice, "language": "fr"}, "C": None}
    assert cast_of(given) == {
        "Anna": Role(Path("anna.wav"), 3, None, {"takes": 2}), "Ben": Role(voice, language="fr"), "C": Role(),
    }


@pytest.mark.parametrize(
    ("cast", "told"),
    [
        (["Anna"], r"cast=\['Anna'\]: a TOML file is needed, or a mapping"),
        ({"Anna": {"voise": "a.wav"}}, r"cast\['Anna'\]: unknown voise"),
        ({"Anna": {"seed": "one"}}, r"cast\['Anna'\]: seed = 'one' is not a int"),
        ({"Anna": {"voice": 5}}, r"cast\['Anna'\]: 5 is no voice"),
        ({"Anna": ["a.wav"]}, r"cast\['Anna'\]: \['a.wav'\] is no voice"),
        ({1: "a.wav"}, r"cast\[1\]: a name is a text"),
    ],
)
def test_what_is_no_cast_is_told(cast, told):
    with pytest.raises(ValueError, match=told):
        cast_of(cast)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[Anna]\nvoise = 'a.wav'", r"\[Anna\]: unknown voise; known are .*voice"),
        ("Anna = 'a.wav'", r"\[Anna\]: a table is needed"),
        ("[Anna]\nseed = 'one'", "seed = 'one' is not a int"),
        ("[Anna", "voices.toml"),
    ],
)
def test_what_is_wrong_in_it_is_told(tmp_path, text, told):
    path = tmp_path / "voices.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        load_cast(path)
