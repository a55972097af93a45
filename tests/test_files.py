"""zoo.utils.files: atomic writes, locks and digests."""

import hashlib
import os
import stat
import subprocess
import sys

import pytest

from zoo.utils.files import (
    LineFile,
    Locked,
    atomic_write,
    folder_write,
    lock,
    make_folder,
    open_file,
    remove_folder,
    remove_leftovers,
    sha256,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("mode", "content"), [("wb", b"\x00\xff"), ("w", "ä\n")])
def test_a_successful_block_replaces_the_file(tmp_path, mode, content):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with atomic_write(target, mode) as file:
        file.write(content)
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == (content if mode == "wb" else content.encode())
    assert names(tmp_path) == ["file"]


def test_a_block_that_raises_leaves_the_file_unchanged(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_failed_rename_leaves_the_file_unchanged(tmp_path, monkeypatch):
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"), atomic_write(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_content_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace

    def spy_sync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def spy_replace(*paths):
        calls.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(os, "replace", spy_replace)
    with atomic_write(tmp_path / "file") as file:
        file.write(b"new")
    assert calls == ["file", "rename", "folder"] if os.name != "nt" else ["file", "rename"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_permissions_are_kept_or_those_of_a_new_file(tmp_path):
    kept, fresh, plain = tmp_path / "kept", tmp_path / "fresh", tmp_path / "plain"
    kept.write_bytes(b"")
    kept.chmod(0o640)
    plain.write_bytes(b"")
    for path in (kept, fresh):
        with atomic_write(path) as file:
            file.write(b"x")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640
    assert fresh.stat().st_mode == plain.stat().st_mode


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_nothing_is_written_through_a_symbolic_link(tmp_path):
    precious, link = tmp_path / "precious", tmp_path / "link"
    precious.write_bytes(b"old")
    link.symlink_to(precious)
    for change in (LineFile, lambda path: lock(path).__enter__()):
        with pytest.raises(ValueError, match="link is not a regular file; it is a symbolic link"):
            change(link)
    with atomic_write(link) as file:
        file.write(b"new")
    assert not link.is_symlink() and link.read_bytes() == b"new" and precious.read_bytes() == b"old"


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_nothing_is_made_or_deleted_in_a_folder_that_is_a_link(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / ".tmp-mine").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    for change in (make_folder, remove_folder, remove_leftovers):
        with pytest.raises(ValueError, match="link is a symbolic link, not a folder"):
            change(tmp_path / "link")
    with pytest.raises(FileExistsError, match="link"), folder_write(tmp_path / "link"):
        pytest.fail("the block ran")
    assert names(tmp_path) == ["link", "precious"] and names(tmp_path / "precious") == [".tmp-mine"]
    assert make_folder(tmp_path / "new") == make_folder(tmp_path / "new") == tmp_path / "new"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_only_regular_files_are_opened_or_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path, kind in ((tmp_path / "pipe", "a FIFO"), ("/dev/zero", "a device"), (tmp_path / "folder", "a folder")):
        for use in (
            open_file,
            sha256,
            LineFile,
            lambda path: lock(path).__enter__(),
            lambda p: atomic_write(p).__enter__(),
        ):
            with pytest.raises(ValueError, match=f"not a regular file; it is {kind}"):
                use(path)


def test_a_lock_leaves_other_content_alone(tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"my thesis\n")
    os.link(precious, tmp_path / "lock")
    with pytest.raises(ValueError, match="lock is not a lock"), lock(tmp_path / "lock"):
        pytest.fail("the block ran")
    assert precious.read_bytes() == b"my thesis\n"


def test_modes_that_do_not_replace_the_file_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="'ab'"), atomic_write(tmp_path / "file", "ab"):
        pass


def test_text_is_utf_8_with_unix_line_ends(tmp_path):
    with atomic_write(tmp_path / "file", "w") as file:
        file.write("a\nü\n")
    assert (tmp_path / "file").read_bytes() == "a\nü\n".encode()


def test_lines_that_could_not_be_written_are_written_before_the_next(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    file, write = LineFile(tmp_path / "lines", begin=b"\n"), os.write
    monkeypatch.setattr(os, "write", refuse)
    with pytest.warns(UserWarning, match="lines cannot be written for now: .*No space left"):
        file.add("one")
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    file.add("two")
    monkeypatch.setattr(os, "write", write)
    file.add("drei ä")
    assert (tmp_path / "lines").read_bytes() == "\none\ntwo\ndrei ä\n".encode()


def test_sha256_of_a_file(tmp_path):
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_folder_appears_when_its_block_ends(tmp_path, monkeypatch):
    calls = []
    sync, rename = os.fsync, os.rename

    def spy_sync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def spy_rename(*paths):
        calls.append("rename")
        rename(*paths)

    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(os, "rename", spy_rename)
    with folder_write(tmp_path / "made") as inside:
        (inside / "a").write_bytes(b"1")
        (inside / "b").write_bytes(b"2")
        assert not (tmp_path / "made").exists()
    assert names(tmp_path / "made") == ["a", "b"]
    assert calls == ["file", "file", "folder", "rename", "folder"]


def test_a_block_that_raises_leaves_no_folder(tmp_path):
    with pytest.raises(KeyboardInterrupt), folder_write(tmp_path / "made") as inside:
        (inside / "a").write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "made").mkdir()
    with pytest.raises(FileExistsError, match="made"), folder_write(tmp_path / "made"):
        pytest.fail("the block ran")


def test_folders_and_leftovers_are_removed(tmp_path):
    for name in ("made", ".tmp-made-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"1")
    (tmp_path / ".tmp-file-0").write_bytes(b"1")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["made"]
    remove_folder(tmp_path / "made")
    assert names(tmp_path) == []


def test_a_lock_has_one_holder(tmp_path):
    code = "import sys; from zoo.utils.files import lock\nwith lock(sys.argv[1]): print('held', flush=True); input()"
    path = tmp_path / "lock"
    command = [sys.executable, "-c", code, str(path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(Locked, match=f"process {other.pid}"), lock(path):
        pytest.fail("the block ran")
    other.kill()
    other.communicate()
    with lock(path), pytest.raises(Locked, match=f"process {os.getpid()}"), lock(path):
        pytest.fail("the block ran")
    with lock(path):
        pass
