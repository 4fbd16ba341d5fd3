import pytest

from sae_lens_sparsemax.settings.yaml_files import parse_value, read_yaml


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
        ("lr: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_a_malformed_file_is_one_sentence(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_answered_with_the_most_similar_one(tmp_path):
    (tmp_path / "small.yaml").write_text("")
    with pytest.raises(ValueError, match=r"did you mean '.*small\.yaml'"):
        read_yaml(tmp_path / "smal.yaml")
    with pytest.raises(ValueError, match="There is no file"):
        read_yaml(tmp_path / "absent" / "config.yaml")


def test_an_empty_file_holds_no_keys(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty.yaml") == {}
