"""Hostile data: paths, shards and captions that would lead elsewhere, run something or fill the memory are refused."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from data_writers import digits, encode, write_captioned_folder, write_class_folders, write_csv, write_shards, write_tar

from zoo.data import BadSample, Batches, open_dataset, read_coco, read_csv, read_folder, read_shards
from zoo.data.preprocess import PreprocessSpec
from zoo.data.records import inside
from zoo.utils.files import read_file

ROOT = Path(__file__).resolve().parent.parent
SPEC = PreprocessSpec(image_size=16)


# Paths.


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


def test_pipes_and_devices_are_refused_without_blocking(tmp_path):
    folder = write_class_folders(tmp_path, 9)
    os.mkfifo(folder / "0_zero" / "a_pipe.png")
    with Batches(read_folder(folder), SPEC, batch_size=2, max_bad_fraction=0.1) as batches:
        assert all(len(batch["images"]) == 2 for batch in batches)
        pipe = folder.resolve() / "0_zero" / "a_pipe.png"
        assert [*batches.bad.reasons.values()] == [f"{pipe} is not a regular file; it is a FIFO"]
    with pytest.raises(ValueError, match="not a regular file"):
        read_file("/dev/zero")


def test_a_link_put_in_place_of_a_file_is_not_followed(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises((OSError, ValueError)):
        read_file(str(tmp_path / "b"))
    assert read_file(inside(str(tmp_path.resolve()), "b")) == b"x"


def test_files_above_the_size_limit_are_not_read(tmp_path):
    (tmp_path / "big").write_bytes(b"")
    os.truncate(tmp_path / "big", 1 << 40)
    with pytest.raises(ValueError, match="has 1099511627776 bytes; at most"):
        read_file(str(tmp_path / "big"))


# Shards.


def hostile_tar(path: Path) -> Path:
    """A good sample between links, devices, names that leave, a pickle and a member of 1 TiB."""
    image = encode(digits(1)[0][0])
    with tarfile.open(path, "w") as tar:

        def add(name, content=b"", kind=tarfile.REGTYPE, link=""):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        add("good.png", image)
        add("good.pkl", b"cos\nsystem\n(S'touch hacked'\ntR.")
        add("good.txt", b"a digit")
        add("../../up.png", image)
        add("/absolute.png", image)
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
def test_shards_are_files_not_commands_or_urls(name):
    with pytest.raises(ValueError, match="URL or a command"):
        read_shards(name)


def test_a_pipe_for_a_shard_and_a_brace_that_never_ends_are_refused(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="not a regular file"):
        read_shards(tmp_path / "a.tar")
    with pytest.raises(ValueError, match="no shard"):
        read_shards(f"{tmp_path}/{{0..99999999999999}}-{{0..999999}}.tar")


def test_compressed_and_other_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    (tmp_path / "b.tar").write_bytes(b"text" * 400)
    (tmp_path / "c.tar").write_bytes(b"")
    for name, said in (("a.tar.gz", "cut off|not an uncompressed tar"), ("b.tar", "not an unc"), ("c.tar", "no sampl")):
        with pytest.raises(ValueError, match=f"no samples in '.*{name}'(: the shard is ({said}))?"):
            read_shards(tmp_path / name)


def test_members_with_an_excessive_size_are_not_read(tmp_path):
    image = encode(digits(1)[0][0])
    whole = write_tar(tmp_path / "a.tar", {"a.png": image, "a.txt": b"x", "b.png": image, "b.txt": b"x"})
    for content in (b"\x80" + (1 << 60).to_bytes(11, "big"), b"\xff" * 12, b"77777777777\0", b"garbage!!!!\0"):
        data = bytearray(whole.read_bytes())
        start = data.index(b"b.png")
        data[start + 124 : start + 136] = content
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        (tmp_path / "b.tar").write_bytes(data)
        dataset = read_shards(tmp_path / "b.tar")
        assert dataset.names == ["b.tar/a", "b.tar/"] and dataset.record(0).image == image
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


def test_a_truncated_or_damaged_shard_keeps_the_samples_before(tmp_path, rng):
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
def test_extended_headers_are_bounded(tmp_path, form):
    name = "x" * (2 << 20) + ".png"
    write_tar(tmp_path / "a.tar", {name: b"x"}, format=form)
    with pytest.raises(ValueError, match="the header at byte 0 has 2097.* bytes"):
        read_shards(tmp_path / "a.tar")


def test_captions_are_bounded_and_json_is_not_trusted(tmp_path):
    image = encode(digits(1)[0][0])
    deep, huge = b"[" * 200_000, b'{"caption": 5, "label": ' + b"9" * 5000 + b"}"
    members = {"a.png": image, "a.txt": b"x" * (2 << 20), "b.png": image, "b.json": b'{"caption": "fine"}'}
    members |= {"c.png": image, "c.json": deep, "d.png": image, "d.json": huge, "e.png": image, "e.json": b"[]"}
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


DEEP = b"[" * 100 + b"]" * 100
HOSTILE_VALUES = {
    b"[" * 200_000: "nested more than 64 levels|not JSON",
    DEEP: "nested more than 64 levels deep",
    b"9" * 5000: "has more than 64 bits",
    b"NaN": "NaN is not a number that JSON has",
    b"1e999": "is too large",
    b'"\xff"': "not JSON",
}


def test_a_hostile_line_of_a_metadata_file_is_a_bad_record(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(digits(1)[0][0]))
    good = b'{"file_name": "a.png", "text": "fine"}'
    wrong = {b'{"file_name": "a.png", "text": "x", "n": %s}' % value: said for value, said in HOSTILE_VALUES.items()}
    wrong |= {b"[]": "Allowed: an object", b'{"file_name": "a.png", "text": "\\ud800"}': "text is not UTF-8"}
    wrong |= {b'{"file_name": ["a.png"], "text": "x"}': "file_name is list", b'{"file_name": "a.png"}': "no text"}
    (tmp_path / "metadata.jsonl").write_bytes(b"\n".join([good, *wrong, good]))
    dataset = open_dataset(tmp_path, needs="captions", metadata=True)
    assert len(dataset) == len(wrong) + 2
    assert dataset.record(0).caption == dataset.record(len(wrong) + 1).caption == "fine"
    for i, said in enumerate(wrong.values(), 1):
        with pytest.raises(BadSample, match=said):
            dataset.record(i)
        assert dataset.names[i] == f"metadata.jsonl line {i + 1}"


@pytest.mark.parametrize(
    "images, annotations, message",
    [
        *((b"%s" % value, b"[]", said) for value, said in HOSTILE_VALUES.items()),
        (b'[{"id": [1], "file_name": "a.png"}]', b"[]", "an object with id and file_name"),
        (b'[{"id": 1}]', b"[]", "an object with id and file_name"),
        (b"[]", b'[{"image_id": {}, "caption": "x"}]', "an object with image_id and caption"),
        (b"[]", b'{"image_id": 1}', "annotations is"),
    ],
)
def test_a_hostile_coco_file_is_refused_in_one_line(tmp_path, images, annotations, message):
    (tmp_path / "captions.json").write_bytes(b'{"info": 1, "images": %s, "annotations": %s}' % (images, annotations))
    with pytest.raises(ValueError, match=f"is not a caption file of COCO.*({message})") as caught:
        open_dataset(tmp_path / "captions.json", needs="captions")
    assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


def test_rows_of_a_coco_file_may_be_bad(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(digits(1)[0][0]))
    notes = '{"image_id": 1, "caption": "fine"}, {"image_id": 2, "caption": "x"}, {"image_id": 1, "caption": " "}'
    images = '{"id": 1, "file_name": "a.png"}, {"id": 3, "file_name": 5}'
    notes += ', {"image_id": 3, "caption": "x"}, {"image_id": 1, "caption": {"a": 1}}'
    (tmp_path / "captions.json").write_text(f'{{"images": [{images}], "annotations": [{notes}]}}')
    dataset = read_coco(tmp_path / "captions.json")
    assert dataset.record(0).caption == "fine" and dataset.names[1] == "captions.json annotation 1"
    for i, said in enumerate(("no image of its", "no caption", "image of its image_id is int", "no caption"), 1):
        with pytest.raises(BadSample, match=said):
            dataset.record(i)


def test_a_pipe_for_a_table_in_json_is_refused(tmp_path):
    for name in ("captions.json", "rows.jsonl"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match="is not a regular file; it is a FIFO"):
            open_dataset(tmp_path / name)


def test_captions_beside_images_are_bounded(tmp_path):
    folder = write_captioned_folder(tmp_path, 2)
    (folder / "00000.txt").write_bytes(b"x" * (2 << 20))
    with pytest.raises(BadSample, match="has 2097152 bytes"):
        read_folder(folder).record(0)
