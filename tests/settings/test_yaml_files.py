import pytest

from sae_lens_sparsemax.settings.yaml_files import parse_value, read_yaml, yaml_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4e-4", 4e-4),
        ("1E5", 1e5),
        ("-2.5e3", -2500.0),
        ("2_000_000", 2_000_000),
        ("32", 32),
        ("true", True),
        ("null", None),
        ("[0, 2]", [0, 2]),
        ("relu", "relu"),
        ("e5", "e5"),
        ("1e", "1e"),
    ],
)
def test_values_are_read_as_people_write_them(text, value):
    read = parse_value(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr: 1\nsae:\n  k: 1\n  k: 2\n", r"'k' is given twice \(line 4\)"),
        ("lr: [1\n", "not valid YAML: line 2"),
        ("- 1\n- 2\n", "must hold 'key: value' lines"),
        ("lr: !!python/object/apply:os.system [ls]\n", r"a tag such as python/object/apply:os.system is not read"),
        ("lr: !!str 1\n", "a tag such as str is not read"),
        ("[1]: 2\n", "a key is no single value"),
        ("a: {b: {c: 1, c: 2}}\n", "'c' is given twice"),
        ("lr: " + "9" * 5000, r"the number '9+…9+' is too long"),
        ("lr: " + "[" * 3000, "more than 64 groups or lists in each other"),
        (
            "a: &a0 [x]\n" + "".join(f"b{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)),
            "more than 10,000 values",
        ),
        ("a: &a {<<: *a}", r"\*a holds itself"),
        ('a: "b\\0c"', "a character that is none"),
        ('a: "\\ud800"', "a character that is none"),
        ("base: [a]", "base must be the name of a file"),
        ("#" * 300_000, "at most 262,144 bytes"),
    ],
)
def test_a_malformed_file_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_keys_are_text_and_merged_groups_keep_their_own_values(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("1: a\nnull: b\nd: &d {x: 1, y: 2}\ne: {f: &f {x: 3, <<: *d}}\ng: {<<: *f}\n", encoding="utf-8-sig")
    assert read_yaml(path) == {
        "1": "a",
        "null": "b",
        "d": {"x": 1, "y": 2},
        "e": {"f": {"x": 3, "y": 2}},
        "g": {"x": 3, "y": 2},
    }


@pytest.mark.parametrize("content", [b"a: caf\xe9", b"a: \0", b"\xff", "a: é".encode("utf-32")])
def test_a_file_that_is_no_text_is_one_sentence(tmp_path, content):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match="is not a UTF-8 text file"):
        read_yaml(tmp_path / "config.yaml")


def test_a_missing_file_is_answered_with_the_most_similar_one(tmp_path):
    (tmp_path / "small.yaml").write_text("")
    with pytest.raises(ValueError, match=r"did you mean '.*small\.yaml'"):
        read_yaml(tmp_path / "smal.yaml")
    with pytest.raises(ValueError, match="There is no file"):
        read_yaml(tmp_path / "absent" / "config.yaml")


def test_an_empty_file_holds_no_keys(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize("text", ["no", "yes", "on", "2024-05-01", "1:30", "0x1F"])
def test_what_only_yaml_1_1_takes_for_something_else_is_text(text):
    assert parse_value(text) == text
    assert parse_value("0100") == 100


def test_what_is_written_is_read_as_the_same_values(tmp_path):
    texts = [
        "1e3",
        "4e-4",
        "5.",
        "1_0",
        "no",
        "2024-05-01",
        "<<",
        "~",
        "",
        "a: b",
        "x #3",
        "*best",
        "0x1f",
        "ü",
        " a",
        "-",
    ]
    values = {"texts": texts, "numbers": [1e-05, 1e3, 1e300, 12, 0.1], "others": [None, True], "group": {"1e3": "1e3"}}
    (tmp_path / "a.yaml").write_text(yaml_text(values), encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == values


def test_a_file_extends_its_base_group_by_group(tmp_path):
    (tmp_path / "base.yaml").write_text("lr: 1\nsae: {d_sae: 8, k: 2}\n")
    (tmp_path / "middle.yaml").write_text("base: base.yaml\nsae: {k: 3}\n")
    (tmp_path / "top.yaml").write_text("base: middle.yaml\nlr: 2\n")
    assert read_yaml(tmp_path / "top.yaml") == {"lr": 2, "sae": {"d_sae": 8, "k": 3}}
    (tmp_path / "base.yaml").write_text("base: top.yaml\n")
    with pytest.raises(ValueError, match="base must be another file, got .*, which extends itself"):
        read_yaml(tmp_path / "top.yaml")
