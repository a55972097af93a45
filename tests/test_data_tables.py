"""Tables as people have them: quotes that nothing closes, spaces, other encodings, long fields, lists of captions."""

import csv
import json
import os
import warnings

import pytest

from zoo.data import BadSample, open_dataset, read_csv


def rows_of(path) -> list[tuple[str, str | None]]:
    """(name, caption) of every record, None for a bad one."""
    dataset = read_csv(path)
    found = []
    for i, name in enumerate(dataset.names):
        try:
            (path.parent / name).touch()
            found.append((name, dataset.record(i).caption))
        except BadSample:
            found.append((name, None))
    return found


def write(path, text: str, encoding: str = "utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("count", [1, 2, 3001])
@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("closing", [None, 'a 12" disc', 'so "good"', '"quoted"'])
def test_a_quote_that_nothing_closes_takes_its_own_line_only(tmp_path, separator, count, place, closing):
    captions = [f"plain {i}" for i in range(count)]
    captions[place % count] = '"opens here'
    if closing is not None and count > 2:
        captions[count - 2] = closing
    lines = [f"{i}.png{separator}{caption}" for i, caption in enumerate(captions)]
    path = write(tmp_path / "t.csv", "\n".join([f"filepath{separator}caption", *lines, ""]))
    with pytest.warns(UserWarning, match=r"t\.csv: a quote opens a field and nothing closes it \(line \d+\)"):
        dataset = read_csv(path)
    assert dataset.names == [f"{i}.png" for i in range(count)]
    for i in {0, place % count, count - 1, max(0, count - 2)}:
        (tmp_path / f"{i}.png").touch()
        expected = "quoted" if captions[i] == '"quoted"' else captions[i]
        assert dataset.record(i).caption == expected


@pytest.mark.parametrize("extension", [".jpg", ""])
def test_other_columns_and_their_order_make_no_difference(tmp_path, extension):
    lines = [f'{i},"opens {i},x{i}{extension}' for i in range(4)] + [f'4,"12""",x4{extension}', f'5,"b",x5{extension}']
    path = write(tmp_path / "t.csv", "\n".join(["id,caption,filepath", *lines]))
    with pytest.warns(UserWarning, match="4 lines, the first is 2"):
        rows = rows_of(path)
    assert rows == [(f"x{i}{extension}", f'"opens {i}') for i in range(4)] + [
        (f"x4{extension}", '12"'),
        (f"x5{extension}", "b"),
    ]


def test_an_unclosed_quote_with_separators_after_it_is_named(tmp_path):
    path = write(tmp_path / "t.csv", 'filepath,caption\na.png,"one, two\nb.png,fine\n')
    with pytest.warns(UserWarning, match="line 2"):
        dataset = read_csv(path)
    assert dataset.names == ["t.csv line 2", "b.png"]
    with pytest.raises(BadSample, match="a quote opens a field and nothing closes it"):
        dataset.record(0)


@pytest.mark.parametrize("columns", [("filepath", "caption"), ("caption", "filepath"), ("n", "caption", "filepath")])
@pytest.mark.parametrize("separator", [",", "\t"])
def test_rows_that_span_lines_are_read_as_csv_reads_them(tmp_path, columns, separator):
    captions = ["one\ntwo", 'he said "a,b"\n\n"yes"', "x\r\ny, z\t1\nlast", "plain", "\n" * 900 + "end", '""', "a\n\n"]
    path = tmp_path / "t.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=separator)
        table.writerow(columns)
        for i, caption in enumerate(captions):
            table.writerow([{"filepath": f"{i}.png", "caption": caption, "n": i}[column] for column in columns])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rows_of(path) == [(f"{i}.png", caption) for i, caption in enumerate(captions)]


@pytest.mark.parametrize("separator", [", ", "; ", " ,", " | "])
def test_cells_of_a_header_may_have_spaces(tmp_path, separator):
    text = separator.join(["filepath", "caption", "class"]) + "\n" + separator.join(["0.png", "a cat", "pets"])
    path = write(tmp_path / "t.csv", text)
    assert rows_of(path) == [("0.png", "a cat")]
    assert read_csv(path, label_key="class").class_names == ("pets",)


def test_spaces_before_quotes(tmp_path):
    path = write(tmp_path / "t.csv", 'filepath, caption\n0.png, "a cat, and\nanother"\n1.png, "b"\n')
    assert rows_of(path) == [("0.png", "a cat, and\nanother"), ("1.png", "b")]
    plain = write(tmp_path / "plain.csv", "filepath,caption\n0.png, kept as it is\n")
    assert rows_of(plain) == [("0.png", " kept as it is")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_byte_order_mark_are_read(tmp_path, encoding):
    path = write(tmp_path / "t.csv", 'filepath,caption\n0.png,"größe\nzwei"\n1.png,猫\n', encoding)
    assert rows_of(path) == [("0.png", "größe\nzwei"), ("1.png", "猫")]


def test_other_encodings_are_named_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="UTF-16 without a byte order mark.*Save it as UTF-8"):
        read_csv(write(tmp_path / "t.csv", "filepath,caption\n0.png,a\n", "utf-16-le"))
    (tmp_path / "t.csv").write_bytes("filepath,caption\n0.png,a\n".encode("utf-16")[:-1])
    with pytest.raises(ValueError, match="begins as UTF-16 and is cut off"):
        read_csv(tmp_path / "t.csv")
    latin = read_csv(write(tmp_path / "t.csv", "filepath,caption\n0.png,café\n1.png,plain\n", "latin-1"))
    with pytest.raises(BadSample, match="not UTF-8; save the table as UTF-8, for instance with iconv -f LATIN1"):
        latin.record(0)


def test_long_fields_are_read_and_the_limit_of_csv_is_restored(tmp_path):
    limit = csv.field_size_limit()
    for long in ("x" * 140_000, '"' + "y" * 200_000 + '"'):
        path = write(tmp_path / "t.csv", f"filepath,caption,note\n0.png,fine,{long}\n")
        assert rows_of(path) == [("0.png", "fine")]
        assert read_csv(path, metadata=True).metadata(0)["note"] == long.strip('"')
    assert csv.field_size_limit() == limit
    endless = read_csv(write(tmp_path / "t.csv", f"filepath,caption\n{'p' * 5000},x\n"))
    with pytest.raises(BadSample, match="filepath has 5000 characters; at most 4096 are allowed"):
        endless.record(0)


@pytest.mark.parametrize("notation", [json.dumps, repr])
def test_a_list_of_captions_is_a_record_for_each(tmp_path, notation):
    path = tmp_path / "t.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        lists = (notation(["a cat", "it's one cat"]), "[cat]", "[1, 2]", "[]")
        table.writerows([["filepath", "caption"], *([f"{i}.png", cell] for i, cell in enumerate(lists))])
    assert rows_of(path) == [
        ("0.png", "a cat"),
        ("0.png", "it's one cat"),
        ("1.png", "[cat]"),
        ("2.png", "[1, 2]"),
        ("3.png", "[]"),
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt", "t.parquet"])
def test_a_table_that_is_a_pipe_is_refused(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name} is not a regular file"):
        open_dataset(tmp_path / name)


def test_a_wide_header_makes_a_short_message(tmp_path):
    path = write(tmp_path / "t.csv", ",".join(f"column_{i}" + "x" * 1000 for i in range(100)) + "\n1\n")
    with pytest.raises(ValueError, match="and 92 more") as caught:
        read_csv(path)
    assert len(str(caught.value)) < 1000
    with pytest.raises(ValueError, match="does not begin with the names of columns: field larger than field limit"):
        read_csv(write(tmp_path / "t.csv", "x" * 140_000 + "\n"))
