"""YAML: numbers as people write them, errors in one line, no code run."""

import pytest

from metarl.yaml_text import read_yaml


def test_yaml_numbers_may_be_written_as_people_do(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: 1e-4\nb: 2.5E6\nc: -1e3\nd: '1e-4'\ne: 7\nf: 1.0e-4\ng: e5\n")
    expected = {"a": 1e-4, "b": 2.5e6, "c": -1e3, "d": "1e-4", "e": 7, "f": 1e-4, "g": "e5"}
    loaded = read_yaml(path)
    assert loaded == expected
    assert [type(value) for value in loaded.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("content", "line", "problem"),
    [
        (b"x: 1\ny: [1\nz: 2", 3, "expected ',' or ']'"),
        (b"x: 1\n\ty: 2", 2, "cannot start any token"),
        (b"x: 1\nx: 2", 2, "key 'x' is repeated"),
        (b"x:\n  y: 1\n  z: 2\n  y: 3", 4, "key 'y' is repeated"),
        (b"x: 1\ny: 2020-99-99", 2, "'2020-99-99' is not a valid timestamp"),
        (b"x: !!int ''", 1, "'' is not a valid int"),
        (b"x: !!bool maybe", 1, "'maybe' is not a valid bool"),
        (b"x: 1\ny: \xff", 2, "not UTF-8 text"),
        (b"x: 1\ny: \0", 2, "special characters are not allowed"),
        (b"", 1, "must hold a mapping of names to values, got NoneType"),
        (b"- 1", 1, "must hold a mapping of names to values, got list"),
        (b"x: 1\n---\ny: 2", 2, "but found another document"),
        (b"[" * 1500, 1, "nested too deeply"),
        (b"[1]: 2", 1, "must hold a mapping|unhashable"),
        (b"{{1: 2}: 3}", 1, "found unhashable key"),
    ],
)
def test_yaml_errors_are_one_line_with_file_and_line(tmp_path, content, line, problem):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.yaml, line {line}: .*({problem})") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.mkdir [{0}]", "!!python/object/new:os.mkdir [{0}]", "!!python/name:os.mkdir ''", "!mine 1"],
)
def test_yaml_runs_no_code(tmp_path, tag):
    path = tmp_path / "a.yaml"
    path.write_text(f"x: 1\ny: {tag.format(tmp_path / 'ran')}\n")
    with pytest.raises(ValueError, match=r"a\.yaml, line 2: could not determine a constructor for the tag"):
        read_yaml(path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_yaml_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        read_yaml(tmp_path / "none.yaml")
