"""zoo.utils.database: SQLite files from elsewhere."""

import sqlite3
import time

import pytest

from zoo.utils import database
from zoo.utils.database import check_pages, open_database

SCHEMA = ("CREATE TABLE items (name TEXT PRIMARY KEY, value BLOB)", "CREATE INDEX values_of ON items(value)")
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"


@pytest.fixture
def path(tmp_path):
    connection = open_database(tmp_path / "a.sqlite", SCHEMA, "a list", write=True, create=True)
    connection.executemany("INSERT INTO items VALUES (?, ?)", [(f"n{i}", bytes(100)) for i in range(300)])
    connection.close()
    return tmp_path / "a.sqlite"


def rows(path, **options):
    connection = open_database(path, SCHEMA, "a list", **options)
    try:
        return connection.execute("SELECT COUNT(*) FROM items").fetchone()[0]
    finally:
        connection.close()


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_reading_changes_nothing_on_disk(path, mode):
    with sqlite3.connect(path) as file:
        file.execute(f"PRAGMA journal_mode={mode}")
    file.close()
    before, names = path.read_bytes(), sorted(path.parent.iterdir())
    connection = open_database(path, SCHEMA, "a list")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM items")
    check_pages(connection)
    connection.close()
    assert path.read_bytes() == before and sorted(path.parent.iterdir()) == names


def test_a_missing_statement_is_executed_when_writing(path):
    with sqlite3.connect(path) as file:
        file.execute("DROP INDEX values_of")
    file.close()
    with pytest.raises(ValueError, match="a.sqlite is not a list: it lacks CREATE INDEX values_of"):
        rows(path)
    assert rows(path, write=True) == 300 == rows(path)


@pytest.mark.parametrize(
    "statement",
    [
        f"CREATE VIEW v AS {ENDLESS}",
        f"CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM items WHERE value IN ({ENDLESS}); END",
        "CREATE TABLE other (x TEXT)",
        "CREATE VIRTUAL TABLE f USING fts5(x)",
        "ALTER TABLE items ADD COLUMN big AS (zeroblob(900000000))",
        'ALTER TABLE items RENAME TO "it\x1bems"',
        "CREATE UNIQUE INDEX i ON items(value, name)",
    ],
)
def test_any_other_schema_is_refused_before_it_acts(path, statement):
    with sqlite3.connect(path) as file:
        file.execute(statement)
    file.close()
    before = path.read_bytes()
    for options in ({}, {"write": True}):
        with pytest.raises(ValueError, match="a.sqlite is not a list: it has the ") as caught:
            rows(path, **options)
        assert str(caught.value).isprintable()
    assert path.read_bytes() == before


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
def test_links_are_refused_and_not_followed(path, end, tmp_path):
    (tmp_path / "precious").write_bytes(b"x")
    link = path.with_name(path.name + end)
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "precious")
    for options in ({}, {"write": True}, {"write": True, "create": True}):
        with pytest.raises(ValueError, match=f"{link.name} is not a regular file; it is a symbolic link"):
            rows(path, **options)
    assert (tmp_path / "precious").read_bytes() == b"x"


def test_long_values_and_endless_work_end(path, monkeypatch):
    connection = open_database(path, SCHEMA, "a list", longest=1000)
    with pytest.raises(sqlite3.DataError, match="too big"):
        connection.execute("SELECT zeroblob(1001)")
    monkeypatch.setattr(database, "MOST_STEPS", 3_000_000)
    start = time.process_time()
    with pytest.raises(sqlite3.OperationalError, match="interrupted"):
        connection.execute(ENDLESS.replace("SELECT i F", "SELECT max(i) F")).fetchall()
    assert time.process_time() - start < 5
    connection.close()


def test_pages_in_a_circle_are_found(path):
    """The root's children all lead to one page: counting rows would read it once for each."""
    connection = sqlite3.connect(path)
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'items'").fetchone()[0]
    connection.close()
    content = bytearray(path.read_bytes())
    page = (root - 1) * size
    assert content[page] == 5  # an inner page of a table
    first = int.from_bytes(content[page + 12 : page + 14], "big")
    content[page + 8 : page + 12] = content[page + first : page + first + 4]  # the last child is the first one again
    path.write_bytes(content)
    connection = open_database(path, SCHEMA, "a list")
    with pytest.raises(sqlite3.DatabaseError, match="damaged pages"):
        check_pages(connection)
    connection.close()
