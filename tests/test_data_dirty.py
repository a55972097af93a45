"""Dirty and hostile data: what is bad is refused, counted exactly, named once and replaced, and the epoch finishes."""

import errno
import io
import json
import os
import resource
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from data_writers import digits, encode, write_captioned_folder, write_class_folders, write_csv, write_shards, write_tar
from PIL import Image

from zoo.data import BadSample, BadSamples, Batches, TooManyBadSamples, from_arrays, read_csv, read_folder, read_shards
from zoo.data.paths import inside, read_file
from zoo.preprocess import PreprocessSpec

ROOT = Path(__file__).resolve().parent.parent
SPEC = PreprocessSpec(image_size=16)
COUNT, BATCH = 96, 8


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """A PNG of 100 bytes that claims 60,000 x 60,000 pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def without_pixels() -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def with_short_palette() -> bytes:
    """A PNG of 60 colours whose palette holds three: Pillow alone would paint the others black."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) % 60).copy()
    image.putpalette(bytes(range(180)))
    file = io.BytesIO()
    image.save(file, "PNG")
    whole = file.getvalue()
    start = whole.index(b"PLTE") - 4
    (length,) = struct.unpack(">I", whole[start : start + 4])
    return whole[:start] + chunk(b"PLTE", bytes(9)) + whole[start + 12 + length :]


def as_tiff() -> bytes:
    return encode(digits(1)[0][0], "TIFF")


def cut_jpeg() -> bytes:
    whole = encode(digits(1)[0][0].repeat(8, 0).repeat(8, 1), "JPEG")
    return whole[: len(whole) // 2]


CORRUPTIONS = {
    "empty file": lambda: b"",
    "truncated JPEG": cut_jpeg,
    "wrong extension": as_tiff,
    "text": lambda: b"<html>404 not found</html>",
    "bomb": bomb,
    "zero size": without_pixels,
    "palette damage": with_short_palette,
    "missing file": lambda: None,
}


def corrupt(path: Path, content: bytes | None) -> None:
    path.unlink() if content is None else path.write_bytes(content)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_sound(batch, rows=BATCH):
    assert batch["images"].shape == (rows, 16, 16, 3) and np.isfinite(batch["images"]).all()


@pytest.fixture
def class_folders(tmp_path):
    return write_class_folders(tmp_path / "data", COUNT)


# --- k of n ---


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("layout", ["csv", "class folders"])
def test_an_epoch_with_k_corrupt_images_finishes_and_counts_exactly_k(tmp_path, rng, kind, layout):
    if layout == "csv":
        path, clean = write_csv(tmp_path / "data", COUNT), from_arrays(*digits(COUNT))
        names = [f"images/{i:05d}.png" for i in range(COUNT)]
        dataset = read_csv(path)
    else:
        folder = write_class_folders(tmp_path / "data", COUNT)
        dataset = read_folder(folder)
        names, clean = dataset.names, None
    chosen = rng.choice(COUNT, 7, replace=False)
    for i in chosen:
        corrupt(tmp_path / "data" / names[i], CORRUPTIONS[kind]())
    log = tmp_path / "bad_samples.jsonl"
    with Batches(dataset, SPEC, batch_size=BATCH, bad_samples=log, max_bad_fraction=0.1) as batches:
        seen = [assert_sound(batch) for batch in batches.epoch(0)]
        assert len(seen) == COUNT // BATCH
        assert sorted(batches.bad.reasons) == sorted(chosen) and len(batches.bad) == 7
        for _ in batches.epoch(1):  # nothing is counted or named again
            pass
        assert len(batches.bad) == 7
        if clean is not None:  # all other rows are what they are without any damage
            whole = Batches(clean, SPEC, batch_size=BATCH)
            for step in range(batches.steps):
                sound = ~np.isin(batches.indices(0, step), chosen)
                ours, theirs = batches.batch(0, step)["images"], whole.batch(0, step)["images"]
                assert np.array_equal(ours[sound], theirs[sound]) and sound.any()
            whole.close()
    entries = lines(log)
    assert sorted(entry["index"] for entry in entries) == sorted(chosen)
    assert {entry["name"] for entry in entries} == {names[i] for i in chosen}
    assert all(entry["reason"] for entry in entries)


def test_all_eight_at_once_in_shards(tmp_path, rng):
    pictures, captions, _ = digits(COUNT)
    chosen = rng.choice(COUNT, len(CORRUPTIONS), replace=False)
    damage = dict(zip(chosen, CORRUPTIONS.values(), strict=True))
    members = {}
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        content = damage[i]() if i in damage else encode(picture)
        members |= {} if content is None else {f"{i:03d}.jpg": content}
        members[f"{i:03d}.txt"] = caption.encode()
    dataset = read_shards(write_tar(tmp_path / "a.tar", members))
    with Batches(dataset, SPEC, batch_size=BATCH, max_bad_fraction=0.1) as batches:
        for batch in batches:
            assert_sound(batch)
        assert sorted(batches.bad.reasons) == sorted(chosen)


def test_a_png_called_jpg_is_sound(tmp_path):
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "a.jpg").write_bytes(encode(digits(1)[0][0]))
    with Batches(read_folder(tmp_path), SPEC, batch_size=1) as batches:
        assert_sound(batches[0], 1)
        assert len(batches.bad) == 0


# --- replacement ---


def replacement(order: np.ndarray, bad: set[int], place: int) -> int:
    """The record at a place of the order, or the next good one from one batch further on."""
    if order[place] in bad:
        place = (place + BATCH) % len(order)
    while order[place] in bad:
        place = (place + 1) % len(order)
    return int(order[place])


def test_a_bad_record_is_replaced_by_the_next_good_one_from_one_batch_further_on(tmp_path):
    pictures = np.stack([np.full((16, 16, 3), i, np.uint8) for i in range(COUNT)])
    labels = np.arange(COUNT, dtype=np.int32)
    with Batches(from_arrays(pictures, labels=labels), SPEC, batch_size=COUNT, seed=3) as clean:
        order = clean.indices(0, 0)
    bad = {int(order[i]) for i in (5, 13, 14, 40, COUNT - 1, 7)}
    images = [np.zeros((0, 3), np.uint8) if i in bad else picture for i, picture in enumerate(pictures)]
    with Batches(from_arrays(images, labels=labels), SPEC, batch_size=BATCH, seed=3, max_bad_fraction=0.1) as batches:
        for step in range(batches.steps):
            expected = [replacement(order, bad, place) for place in range(step * BATCH, (step + 1) * BATCH)]
            assert list(batches.batch(0, step)["label"]) == expected
        assert order[15] in batches.batch(0, 0)["label"]  # in place of 5: 13 and 14 are bad too
        assert set(batches.bad.reasons) == bad


def test_a_resumed_run_sees_the_same_batches_and_names_nothing_twice(class_folders, tmp_path, rng):
    dataset = read_folder(class_folders)
    for i in rng.choice(COUNT, 6, replace=False):
        corrupt(class_folders / dataset.names[i], b"")
    options = {"batch_size": BATCH, "seed": 5, "max_bad_fraction": 0.1, "bad_samples": tmp_path / "bad.jsonl"}
    with Batches(dataset, SPEC, **options) as batches:
        whole = [batches[i] for i in range(2 * batches.steps)]
    once = lines(tmp_path / "bad.jsonl")
    with open(tmp_path / "bad.jsonl", "a") as file:
        file.write('{"index": 1, "na')  # a process was killed here
    for start in (1, 7, 12, 20):
        with Batches(dataset, SPEC, **options) as batches:
            assert len(batches.bad) == 6
            for i in range(start, len(whole)):
                again = batches[i]
                assert all(np.array_equal(again[key], whole[i][key]) for key in whole[i])
    assert (tmp_path / "bad.jsonl").read_text().splitlines()[:6] == [json.dumps(entry) for entry in once]
    corrupt(class_folders / dataset.names[np.setdiff1d(np.arange(COUNT), [e["index"] for e in once])[0]], b"")
    with Batches(dataset, SPEC, **options) as batches:
        for _ in batches:
            pass
    last = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert len(last) == 8 and json.loads(last[-1])["reason"] == "the image is an empty file"


def test_bad_records_are_left_out_where_nothing_is_to_replace_them(class_folders):
    dataset = read_folder(class_folders)
    for i in (0, 1, 9):
        corrupt(class_folders / dataset.names[i], b"")
    options = {"batch_size": BATCH, "shuffle": False, "replace_bad": False, "drop_last": False, "max_bad_fraction": 0.1}
    with Batches(dataset, SPEC, **options) as batches:
        labels = [batch["label"] for batch in batches]
        assert_sound(batches.batch(0, 0), BATCH - 2)
    assert [len(part) for part in labels[:3]] == [BATCH - 2, BATCH - 1, BATCH]
    assert np.array_equal(np.concatenate(labels), np.delete(dataset.labels, [0, 1, 9]))


def test_too_many_bad_records_end_the_run_with_one_clear_error(class_folders, tmp_path):
    dataset = read_folder(class_folders)
    for i in range(0, 40, 10):
        corrupt(class_folders / dataset.names[i], b"")
    log = tmp_path / "bad.jsonl"
    with Batches(dataset, SPEC, batch_size=BATCH, max_bad_fraction=0.03, bad_samples=log, threads=1) as batches:
        said = r"^3 of 96 samples are bad, more than the 3.00% that max_bad_fraction allows. The first: '.*png': "
        with pytest.raises(TooManyBadSamples, match=said + r"the image is an empty file; .* All are in .*bad.jsonl\.$"):
            for _ in batches:
                pass
    with Batches(dataset, SPEC, batch_size=BATCH, max_bad_fraction=0.05, bad_samples=log) as batches:
        assert len(list(batches)) == 12 and len(batches.bad) == 4 == len(lines(log))
    with (  # what another run found counts as soon as one of them is met again
        Batches(dataset, SPEC, batch_size=BATCH, max_bad_fraction=0.03, bad_samples=log) as batches,
        pytest.raises(TooManyBadSamples, match="4 of 96"),
    ):
        list(batches)


def test_a_full_disk_loses_no_name_and_does_not_end_the_run(tmp_path, monkeypatch):
    log, write = tmp_path / "bad.jsonl", os.write
    bad = BadSamples(["a", "b", "c"], log, 1.0)

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.warns(UserWarning, match="bad.jsonl cannot be written: .*No space left"):
        bad.add(0, "torn")
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    bad.add(1, "empty")
    monkeypatch.setattr(os, "write", write)
    bad.add(2, "text")
    assert [(entry["name"], entry["reason"]) for entry in lines(log)] == [("a", "torn"), ("b", "empty"), ("c", "text")]
    with pytest.raises(ValueError, match="no such folder"):
        BadSamples(["a"], tmp_path / "none" / "bad.jsonl")


def test_one_file_may_name_the_bad_records_of_two_data_sets(tmp_path):
    log = tmp_path / "bad.jsonl"
    BadSamples(["a", "b"], log, 1.0).add(0, "empty")
    other = BadSamples(["c", "b"], log, 1.0)
    assert len(other) == 0
    other.add(0, "text")
    assert BadSamples(["a", "b"], log).reasons == {0: "empty"} and BadSamples(["c", "b"], log).reasons == {0: "text"}


def test_nothing_good_ends_the_run_whatever_is_allowed():
    images = [np.zeros((0, 3), np.uint8)] * 4
    with (
        Batches(from_arrays(images), SPEC, batch_size=2, max_bad_fraction=1.0) as batches,
        pytest.raises(TooManyBadSamples, match="all 4 samples are bad"),
    ):
        list(batches)


def test_what_the_transform_or_the_tokenizer_refuses_is_bad_too():
    pictures, captions, _ = digits(4)
    images = [*pictures[:3], np.zeros((9000, 1, 3), np.uint8)]

    def tokenize(texts):
        if captions[1] in texts:
            raise ValueError("too long")
        return np.ones((len(texts), 5), np.int32)

    dataset = from_arrays(images, captions)
    spec = PreprocessSpec(image_size=224)
    with Batches(dataset, spec, batch_size=4, tokenize=tokenize, max_bad_fraction=0.5) as batches:
        assert batches[0]["tokens"].shape == (4, 5)
        assert batches.bad.reasons[1] == "too long" and "224x2016000" in batches.bad.reasons[3]


def test_what_the_machine_fails_at_is_no_fault_of_the_data(class_folders):
    dataset = read_folder(class_folders)
    low, high = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, high))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(open(os.devnull))  # noqa: SIM115
        with pytest.raises(OSError, match="Too many open files") as caught:
            dataset.record(0)
    finally:
        for file in held:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, high))
    assert not isinstance(caught.value, BadSample)
    assert dataset.record(0).image


# --- hostile paths ---


def test_paths_that_leave_the_data_root_are_refused(tmp_path):
    root, secret = tmp_path / "data", tmp_path / "secret.png"
    write_csv(root, 1)
    secret.write_bytes(encode(digits(1)[0][0]))
    (root / "link.png").symlink_to(secret)
    (root / "up").symlink_to(tmp_path)
    (root / "fine.png").symlink_to(root / "images" / "00000.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    wrong = {
        "../secret.png": "leaves the data root",
        str(secret): "leaves the data root",
        "images/../../secret.png": "leaves the data root",
        "link.png": "leaves the data root",
        "up/secret.png": "leaves the data root",
        "loop.png": "symbolic link|not a regular file",
        "images": "not a regular file",
        "a\0b.png": "null",
        "https://example.org/a.png": "URL or a command",
        "pipe:touch hacked": "URL or a command",
        "/dev/zero": "leaves the data root",
    }
    fine = ["fine.png", "images/00000.png", str(root / "images" / "00000.png")]
    rows = "".join(f"{name},x\n" for name in [*wrong, *fine])
    (root / "t.csv").write_text(f"filepath,caption\n{rows}")
    dataset = read_csv(root / "t.csv")
    for i, reason in enumerate(wrong.values()):
        with pytest.raises(BadSample, match=reason):
            dataset.record(i)
    for i in range(len(wrong), len(dataset)):
        assert dataset.record(i).image == (root / "images" / "00000.png").read_bytes()
    wide = read_csv(root / "t.csv", data_root="/")
    assert wide.record(1).image == secret.read_bytes()  # the root is the caller's choice
    with pytest.raises(BadSample, match="not a regular file"):
        wide.record(len(wrong) - 1)


def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    folder = write_class_folders(tmp_path, 9)
    os.mkfifo(folder / "0_zero" / "a_pipe.png")
    with Batches(read_folder(folder), SPEC, batch_size=2, max_bad_fraction=0.1) as batches:
        for batch in batches:
            assert_sound(batch, 2)
        assert [*batches.bad.reasons.values()] == [f"{folder.resolve()}/0_zero/a_pipe.png is not a regular file"]
    with pytest.raises(ValueError, match="not a regular file"):
        read_file("/dev/zero")


def test_a_link_put_in_place_of_a_file_is_not_followed(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises((OSError, ValueError)):
        read_file(str(tmp_path / "b"))
    assert read_file(inside(str(tmp_path.resolve()), "b")) == b"x"


def test_files_beyond_the_cap_are_not_read(tmp_path):
    (tmp_path / "big").write_bytes(b"")
    os.truncate(tmp_path / "big", 1 << 40)
    with pytest.raises(ValueError, match="has 1099511627776 bytes; at most"):
        read_file(str(tmp_path / "big"))


# --- hostile shards ---


def hostile_tar(path: Path) -> Path:
    """A good sample between links, devices, names that leave, a pickle and a member of 1 TiB."""
    picture = encode(digits(1)[0][0])
    with tarfile.open(path, "w") as tar:

        def add(name, content=b"", kind=tarfile.REGTYPE, link=""):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        add("good.png", picture)
        add("good.pkl", b"cos\nsystem\n(S'touch hacked'\ntR.")
        add("good.txt", b"a digit")
        add("../../up.png", picture)
        add("/absolute.png", picture)
        add("soft.png", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add("hard.png", kind=tarfile.LNKTYPE, link="/etc/passwd")
        add("null.png", kind=tarfile.CHRTYPE)
        add("pipe.png", kind=tarfile.FIFOTYPE)
        add("folder.png", kind=tarfile.DIRTYPE)
        add("only.pkl", b"cos\nsystem\n(S'touch hacked'\ntR.")
    return path


def test_a_hostile_shard_writes_nothing_runs_nothing_and_gives_its_good_sample(tmp_path):
    (tmp_path / "in").mkdir()
    path = hostile_tar(tmp_path / "in" / "a.tar")
    before = sorted(tmp_path.rglob("*"))
    code = (
        "import encodings.utf_8_sig, sys; from zoo.data import BadSample, read_shards\n"
        "watched = []\n"
        "def hook(event, args):\n"
        "    writes = event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+')\n"
        "    if writes or event in ('exec', 'subprocess.Popen', 'os.system', 'socket.connect', 'pickle.find_class'):\n"
        "        watched.append((event, str(args)[:99]))\n"
        "sys.addaudithook(hook)\n"
        "data = read_shards(sys.argv[1])\n"
        "for i, name in enumerate(data.names):\n"
        "    try: print(name, data.record(i).caption, sep='|')\n"
        "    except BadSample as error: print(name, error, sep='|')\n"
        "print(watched)\n"
    )
    run = [sys.executable, "-B", "-c", code, str(path)]
    said = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert said == [
        "a.tar/good|a digit",
        "a.tar/../../up|its name leaves the shard",
        "a.tar/absolute|its name leaves the shard",
        "a.tar/soft|.png is not a regular file",
        "a.tar/hard|.png is not a regular file",
        "a.tar/null|.png is not a regular file",
        "a.tar/pipe|.png is not a regular file",
        "[]",
    ]
    assert sorted(tmp_path.rglob("*")) == before and not (ROOT / "hacked").exists()


@pytest.mark.parametrize("name", ["pipe:touch hacked", "https://example.org/a.tar", "s3://bucket/a.tar"])
def test_shards_are_files_not_commands_or_addresses(name):
    with pytest.raises(ValueError, match="URL or a command"):
        read_shards(name)


def test_a_pipe_for_a_shard_and_a_brace_that_never_ends_are_refused(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="not a regular file"):
        read_shards(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="no shard"):
        read_shards(f"{tmp_path}/{{0..99999999999999}}-{{0..999999}}.tar")


def test_compressed_and_other_files_are_no_shards(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    (tmp_path / "b.tar").write_bytes(b"text" * 400)
    (tmp_path / "c.tar").write_bytes(b"")
    for name, said in (("a.tar.gz", "cut off|not an uncompressed tar"), ("b.tar", "not an unc"), ("c.tar", "no sampl")):
        with pytest.raises(ValueError, match=f"no samples in '.*{name}'(: the shard is ({said}))?"):
            read_shards(tmp_path / name)


def test_members_that_claim_too_much_are_not_read(tmp_path):
    picture = encode(digits(1)[0][0])
    whole = write_tar(tmp_path / "a.tar", {"a.png": picture, "a.txt": b"x", "b.png": picture, "b.txt": b"x"})
    for content in (b"\x80" + (1 << 60).to_bytes(11, "big"), b"\xff" * 12, b"77777777777\0", b"garbage!!!!\0"):
        data = bytearray(whole.read_bytes())
        start = data.index(b"b.png")
        data[start + 124 : start + 136] = content
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        (tmp_path / "b.tar").write_bytes(data)
        dataset = read_shards(tmp_path / "b.tar")
        assert dataset.names == ["b.tar/a", "b.tar/"] and dataset.record(0).image == picture
        with pytest.raises(BadSample, match="the shard is (cut off|damaged)"):
            dataset.record(1)
    with open(tmp_path / "big.tar", "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
        member = tarfile.TarInfo("big.png")
        member.size = 1 << 34
        file.write(member.tobuf())
    os.truncate(tmp_path / "big.tar", (1 << 34) + 4096)
    dataset = read_shards(tmp_path / "big.tar")
    with pytest.raises(BadSample, match="has 17179869184 bytes; at most 268435456 are allowed"):
        dataset.record(1)


def test_a_shard_cut_off_or_damaged_anywhere_keeps_what_stands_before(tmp_path, rng):
    write_shards(tmp_path, 6, shards=1, size=8)
    whole = (tmp_path / "digits-0000.tar").read_bytes()
    good = [read_shards(tmp_path / "digits-0000.tar").record(i) for i in range(6)]
    path = tmp_path / "digits-0000.tar"
    first = whole.index(b"00001.png")
    for length in rng.integers(first, len(whole), 60):
        path.write_bytes(whole[:length])
        assert read_shards(path).record(0) == good[0]
        assert_prefix(path, good)
    for place in rng.integers(len(whole), size=60):
        data = bytearray(whole)
        data[place] ^= 1 + rng.integers(255)
        path.write_bytes(data)
        assert_prefix(path, good, flipped=1)


def assert_prefix(path, good, flipped=0):
    """Records are the good ones, but for bad ones and `flipped` that a flipped byte changed."""
    try:
        dataset = read_shards(path)
    except ValueError:
        return
    changed = 0
    for i in range(len(dataset)):
        try:
            changed += dataset.record(i) not in good
        except BadSample:
            continue
    assert changed <= flipped


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_of_headers_are_bounded(tmp_path, form):
    name = "x" * (2 << 20) + ".png"
    write_tar(tmp_path / "a.tar", {name: b"x"}, format=form)
    with pytest.raises(ValueError, match="the header at byte 0 has 2097.* bytes"):
        read_shards(tmp_path / "a.tar")


def test_captions_are_bounded_and_json_is_not_trusted(tmp_path):
    picture = encode(digits(1)[0][0])
    deep, huge = b"[" * 200_000, b'{"caption": 5, "label": ' + b"9" * 5000 + b"}"
    members = {"a.png": picture, "a.txt": b"x" * (2 << 20), "b.png": picture, "b.json": b'{"caption": "fine"}'}
    members |= {"c.png": picture, "c.json": deep, "d.png": picture, "d.json": huge, "e.png": picture, "e.json": b"[]"}
    dataset = read_shards(write_tar(tmp_path / "a.tar", members))
    assert dataset.record(1).caption == "fine"
    for i, reason in (
        (0, r"\.txt has 2097152 bytes"),
        (2, "json is damaged"),
        (3, "json is damaged"),
        (4, "no caption"),
    ):
        with pytest.raises(BadSample, match=reason):
            dataset.record(i)


def test_captions_beside_images_are_bounded(tmp_path):
    folder = write_captioned_folder(tmp_path, 2)
    (folder / "00000.txt").write_bytes(b"x" * (2 << 20))
    with pytest.raises(BadSample, match="has 2097152 bytes"):
        read_folder(folder).record(0)
