"""Tables of texts: what is read from each kind of table, and the reasons given for bad rows."""

import pytest
from batches import table

from chatterbox_opt.scale.rows import BadRow, Row, read_rows

GIVEN = [
    {"text": "One.", "id": "first", "seed": 7, "temperature": 0.5, "voice": "ann.wav"},
    {"text": "Two, with a comma.", "id": "second", "max_new_tokens": 40},
]
NAMES = ["text", "id", "seed", "temperature", "voice", "max_new_tokens"]


def as_csv(folder):
    cells = [[f'"{row["text"]}"', *(str(row.get(name, "")) for name in NAMES[1:])] for row in GIVEN]
    return table(folder / "t.csv", [",".join(line) for line in [NAMES, *cells]])


def as_parquet(folder):
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow: pip install 'chatterbox-opt[parquet]'")
    from pyarrow import parquet

    rows = [{name: row.get(name) for name in NAMES} for row in GIVEN]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "t.parquet")
    return folder / "t.parquet"


@pytest.mark.parametrize("other", [as_csv, as_parquet])
def test_each_kind_of_table_gives_the_same_rows(other, tmp_path):
    rows = read_rows(table(tmp_path / "t.jsonl", GIVEN))
    assert read_rows(other(tmp_path)) == rows
    first, second = rows
    assert first.options == {"seed": 7, "temperature": 0.5}
    assert first.recording == str(tmp_path / "ann.wav")
    assert second.options.keys() == {"max_new_tokens", "seed"}


def test_a_seed_is_derived_from_text_and_options_and_nothing_else(tmp_path):
    lines = [{"text": "A.", "id": "a"}, {"text": "A.", "id": "b"}, {"text": "B."}, {"text": "A.", "top_k": 5}]
    seeds = [row.options["seed"] for row in read_rows(table(tmp_path / "t.jsonl", lines))]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3


def test_options_may_be_json_in_one_column(tmp_path):
    lines = [{"text": "A.", "options": {"top_k": 3}}, {"text": "A.", "options": '{"top_k": 3}'}]
    assert [row.options["top_k"] for row in read_rows(table(tmp_path / "t.jsonl", lines))] == [3, 3]


def test_a_row_may_have_takes_retries_spoken_and_pronounce(tmp_path):
    lines = [{"text": "A.", "takes": 3, "retries": 1, "spoken": True, "pronounce": {"A": "Ay"}}, {"text": "B."}]
    first, second = read_rows(table(tmp_path / "t.jsonl", lines), {"takes": 2})
    assert first.options | {"seed": 0} == {
        "takes": 3, "retries": 1, "spoken": True, "pronounce": {"A": "Ay"}, "seed": 0
    }
    assert second.options["takes"] == 2
    assert second.several_takes
    cells = 'text,takes,retries,spoken,pronounce\nA.,3,1,true,"{""A"": ""Ay""}"\nB.,1,,false,'
    from_csv = read_rows(table(tmp_path / "t.csv", cells.splitlines()))
    assert from_csv[0] == first
    assert not from_csv[1].several_takes


def test_common_values_are_for_rows_without_their_own(tmp_path):
    lines = [{"text": "A.", "voice": "own.wav"}, {"text": "B."}]
    rows = read_rows(table(tmp_path / "t.jsonl", lines), {"voice": "/voices/all.wav"})
    assert [row.voice for row in rows] == ["own.wav", "/voices/all.wav"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "JSON"),
        ({"text": "A.", "takes": "two"}, "takes='two'"),
        ({"text": "A.", "spoken": 3}, "a library's name"),
        ({"text": "A.", "pronounce": "names.toml"}, "respellings are needed"),
        ({"text": "A.", "pronounce": ["a"]}, "respellings are needed"),
        ("[1]", "no JSON object"),
        ({"text": "  "}, "no text"),
        ({"text": 5}, "no text"),
        ({"id": "a"}, "no text"),
        ({"text": "A.", "mood ": "glad"}, "unknown column 'mood '; known are text, id"),
        ({"text": "A.", "temperature": "hot"}, "temperature='hot'"),
        ({"text": "A.", "seed": 1.5}, "seed=1.5"),
        ({"text": "A.", "top_k": True}, "top_k=True"),
        ({"text": "A.", "top_p": float("inf")}, "top_p=inf"),
        ({"text": float("nan")}, "no text"),
        ('{"text": "A.", "temperature": ' + "9" * 400 + "}", "temperature=999"),
        ('{"text": "A.", "seed": ' + "9" * 5000 + "}", "JSON"),
        ({"text": "A.", "seed": 2.0**53}, "seed=9007199254740992.0: a whole number"),
        ("[" * 100_000, "JSON"),
        ({"text": "A.", "options": "[" * 100_000}, ""),
        ({"text": "A.", "pronounce": "[" * 100_000}, ""),
        ({"text": "A.", "voice": 3}, "voice=3"),
        ({"text": "A.", "options": "{"}, "property name"),
        ({"text": "A.", "options": [1]}, "sequence"),
        ({"text": "A.", "options": "[1]"}, "sequence"),
        ({"text": "A.", "options": "5"}, "not iterable"),
        ({"text": "A.", "id": "../up"}, "begin with a dot"),
        ({"text": "A.", "id": "/etc/passwd"}, "may be empty"),
        ({"text": "A.", "id": "a\nb"}, "control characters may be in it"),
        ({"text": "A.", "id": "a:b"}, 'no \\ : * ? " < > | or control characters'),
        ({"text": "A.", "id": "a" * 201}, "1 to 200"),
    ],
)
def test_a_bad_row_has_a_reason_and_the_others_are_read(line, reason, tmp_path):
    before, bad, after = read_rows(table(tmp_path / "t.jsonl", [GIVEN[0], line, GIVEN[1]]))
    assert isinstance(before, Row)
    assert isinstance(after, Row)
    assert isinstance(bad, BadRow)
    assert reason in bad.reason
    assert bad.number == 2


def test_a_cell_of_parquet_that_cannot_be_read_is_one_bad_row(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow: pip install 'chatterbox-opt[parquet]'")
    from pyarrow import parquet

    texts = pa.array([b"A.", b"\xff", b"B."]).view(pa.string())
    parquet.write_table(pa.table({"text": texts}), tmp_path / "t.parquet")
    first, bad, last = read_rows(tmp_path / "t.parquet")
    assert (first.text, last.text) == ("A.", "B.")
    assert "utf-8" in bad.reason


# As pandas 3 writes a table of whole numbers with one missing: they are floats. The index has no name.
PANDAS_TABLES = {
    "t.csv": [",text,seed,takes,temperature,voice", "0,A.,1.0,2,0.5,a.wav", "1,B.,,2,,"],
    "no_index.csv": ["text,seed,takes,temperature,voice", "A.,1.0,2,0.5,a.wav", "B.,,2,,"],
    "t.jsonl": [
        '{"text":"A.","seed":1.0,"takes":2,"temperature":0.5,"voice":"a.wav"}',
        '{"text":"B.","seed":null,"takes":2,"temperature":null,"voice":null}',
    ],
    "nan.jsonl": [  # json.dumps() of its rows
        '{"text": "A.", "seed": 1.0, "takes": 2, "temperature": 0.5, "voice": "a.wav"}',
        '{"text": "B.", "seed": NaN, "takes": 2, "temperature": NaN, "voice": NaN}',
    ],
}
PANDAS_ROWS = [
    {"text": "A.", "seed": 1, "takes": 2, "temperature": 0.5, "voice": "a.wav"}, {"text": "B.", "takes": 2},
]


@pytest.mark.parametrize("name", PANDAS_TABLES)
def test_a_table_of_pandas_with_gaps_is_read(name, tmp_path):
    wanted = read_rows(table(tmp_path / "wanted.jsonl", PANDAS_ROWS))
    assert read_rows(table(tmp_path / name, PANDAS_TABLES[name])) == wanted


def test_a_parquet_table_of_pandas_with_gaps_is_read(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow: pip install 'chatterbox-opt[parquet]'")
    from pyarrow import parquet

    gap = float("nan")
    columns = {"text": ["A.", "B."], "seed": [1.0, gap], "takes": [2, 2], "temperature": [0.5, gap]}
    columns |= {"voice": ["a.wav", None], "__index_level_0__": [4, 7]}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    wanted = read_rows(table(tmp_path / "wanted.jsonl", PANDAS_ROWS))
    assert read_rows(tmp_path / "t.parquet") == wanted


def test_an_id_that_became_a_float_names_the_same_file(tmp_path):
    rows = read_rows(table(tmp_path / "t.jsonl", [{"text": "A.", "id": 12.0}, {"text": "B.", "id": float("nan")}]))
    assert [row.id for row in rows] == ["12", "0000002"]


def test_an_empty_value_inside_a_column_counts_as_missing(tmp_path):
    plain, *others = [
        {"text": "A.", "options": {"top_k": 3}, "pronounce": {"SQL": "sequel"}},
        {"text": "A.", "options": {"top_k": 3, "top_p": None}, "pronounce": {"SQL": "sequel", "nginx": None}},
        {"text": "A.", "options": '{"top_k": 3, "top_p": null}', "pronounce": '{"SQL": "sequel", "nginx": null}'},
    ]
    wanted, *rows = read_rows(table(tmp_path / "t.jsonl", [plain, *others]))
    assert [row.digest for row in rows] == [wanted.digest] * 2
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow: pip install 'chatterbox-opt[parquet]'")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist([plain, others[0]]), tmp_path / "t.parquet")
    assert [row.digest for row in read_rows(tmp_path / "t.parquet")] == [wanted.digest] * 2


def test_a_long_text_and_an_ending_in_capitals(tmp_path):
    (row,) = read_rows(table(tmp_path / "T.CSV", ["text", "word " * 40_000]))
    assert row.text == "word " * 40_000


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_csv_file_in_another_encoding_is_named(tmp_path, encoding):
    (tmp_path / "t.csv").write_bytes("text\nCafé\n".encode(encoding))
    with pytest.raises(ValueError, match=r"t\.csv: .*save it as UTF-8"):
        read_rows(tmp_path / "t.csv")


def test_a_cell_without_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("chatterbox_opt.scale.rows.LONGEST_CELL", 1000)
    given = table(tmp_path / "t.csv", ["text,id", "One.,a", '"He said hello,b', *["Another row."] * 100])
    with pytest.raises(ValueError, match=r"t\.csv: row at line 3: field larger than field limit \(1000\)"):
        read_rows(given)


def test_bytes_that_are_not_utf8_are_one_bad_row(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"text": "A."}\n{"text": "\xff"}\n')
    assert [type(row) for row in read_rows(path)] == [Row, BadRow]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("t.jsonl", [GIVEN[0], GIVEN[1], GIVEN[0]], "rows 1 and 3 have one id, 'first'"),
        ("t.jsonl", [{"text": "A.", "id": "a"}, {"text": "B.", "id": "A"}], "1 and 2 .* in case only, 'a' and 'A'"),
        ("t.csv", ["text,id", "A.,of/straße", "B.,", "C.,of/STRASSE"], "1 and 3 .* 'of/straße' and 'of/STRASSE'"),
        ("t.csv", ["id,words", "a,Hello."], "no column 'text'"),
        ("t.txt", ["Hello."], "ends in .jsonl"),
        ("t.csv", ["text,id", "One.,a", '"He said hello,b', "Three.,c"], r"t\.csv: row at line 3: .*quote"),
    ],
)
def test_a_table_of_no_use_is_refused_as_a_whole(name, lines, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_rows(table(tmp_path / name, lines))


@pytest.mark.parametrize("damage", [lambda whole: b"PAR1 and no more", lambda whole: whole[:40], lambda whole: b""])
def test_a_damaged_parquet_file_is_named(damage, tmp_path):
    path = as_parquet(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"t\.parquet: this is no parquet file, or it is damaged"):
        read_rows(path)
