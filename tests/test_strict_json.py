"""zoo.utils.strict_json: foreign JSON, bounded and compared with a schema; and zoo.utils.text, which prints it."""

import os

import pytest

from clip import Field
from zoo.utils.strict_json import LARGEST_INTEGER, list_of, object_of, parse_json, read_json, text
from zoo.utils.text import LONGEST, printed, quoted, shown

SCHEMA = {"dim": Field.integer(1, 8), "names": list_of(text(10)), "shas": object_of(text(4))}


def test_a_good_file_is_read_as_it_is(tmp_path):
    content = b'\xef\xbb\xbf{"dim": 3, "names": ["a", "\\u00e4"], "shas": {"": "x"}}'
    (tmp_path / "f.json").write_bytes(content)
    assert read_json(tmp_path / "f.json", SCHEMA) == {"dim": 3, "names": ["a", "ä"], "shas": {"": "x"}}
    assert parse_json(str(LARGEST_INTEGER), "n") == LARGEST_INTEGER
    assert parse_json("[" * 64 + "]" * 64, "deep")
    assert parse_json('{"dim": 1, "more": null}', "f", {"dim": SCHEMA["dim"], "x": text()}, optional={"x"}, others=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"f\.json is not JSON: Expecting property name"),
        ("\xff", "f.json is not JSON"),
        ("[" * 65 + "]" * 65, "f.json is nested more than 64 levels deep"),
        ("[" * 100_000, "nested more than 64 levels"),
        ('{"a":' * 1000 + "1" + "}" * 1000, "nested more than 64 levels"),
        ("1" + "0" * 400, "the integer 1000.*… has more than 64 bits"),
        ("1" + "0" * 5000, "has more than 64 bits"),
        ("-18446744073709551616", "has more than 64 bits"),
        ("1e999", "the number 1e999 is too large"),
        ('{"dim": NaN}', "NaN is not a number that JSON has"),
        ("-Infinity", "-Infinity is not a number"),
        ("[]", r"f\.json: its content is \[\]\. Allowed: an object with exactly dim, names, shas"),
        ('{"dim": 1}', "lacks names, shas"),
        ('{"dim": 0, "names": [], "shas": {}}', r"dim is 0\. Allowed: an integer from 1 to 8"),
        ('{"dim": true, "names": [], "shas": {}}', "dim is True"),
        ('{"dim": 1, "names": [5], "shas": {}}', r"names is \[5\]\. Allowed: a list, each item a text"),
        ('{"dim": 1, "names": ["\\ud800"], "shas": {}}', "names is"),
        ('{"dim": 1, "names": [], "shas": {"a": 5}}', "shas is {'a': 5}"),
        ('{"dim": 1, "names": [], "shas": {}, "\\u001b": 1}', r"'\\x1b': 1"),
    ],
)
def test_other_content_is_refused_in_one_line(content, message, tmp_path):
    (tmp_path / "f.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as caught:
        read_json(tmp_path / "f.json", SCHEMA)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_large_files_pipes_and_folders_are_refused(tmp_path):
    (tmp_path / "large").write_bytes(b" " * 100 + b"1")
    with pytest.raises(ValueError, match="large has 101 bytes; at most 100 are allowed"):
        read_json(tmp_path / "large", max_bytes=100)
    with pytest.raises(ValueError, match="is not a regular file; it is a folder"):
        read_json(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="is not a regular file; it is a FIFO"):
            read_json(tmp_path / "pipe")


def test_foreign_text_is_escaped_and_cut():
    assert shown("Straße 漢字\u3000😀 'x'") == "Straße 漢字\u3000😀 'x'"
    assert shown("a\x1b[2J\x07\u202eb\0\n\ud800\x9b") == r"a\x1b[2J\x07\u202eb\x00\n\ud800\x9b"
    assert shown("x" * 501) == "x" * 499 + "…" and shown("x" * 500) == "x" * 500
    assert len(shown("\x1b" * 10_000)) == LONGEST
    assert shown(ValueError("two\n  lines\x1b")) == r"two lines\x1b"
    assert quoted("\u202e'") == '"\\u202e\'"' and quoted({"b": [1, None], "a": 0.5}) == "{'b': [1, None], 'a': 0.5}"
    assert printed("a\x1b\nb\tc") == "a\\x1b\nb\\tc"


def test_a_value_of_any_size_is_written_quickly():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, 10**5000, list(range(10**6)), "x" * 10**7, {"k" * 10**6: b"v" * 10**6}):
        assert len(quoted(value)) <= LONGEST
    assert quoted(10**5000) == "an integer of 16610 bits"
