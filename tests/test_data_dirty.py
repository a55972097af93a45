"""Dirty data: what is bad is counted exactly, named once and replaced, and the epoch finishes."""

import errno
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from corrupt_images import CORRUPTIONS, corrupt
from data_writers import digits, encode, write_class_folders, write_csv, write_tar

from zoo.data import BadSample, BadSamples, Batches, TooManyBadSamples, from_arrays, read_csv, read_folder, read_shards
from zoo.data.preprocess import PreprocessSpec

SPEC = PreprocessSpec(image_size=16)
COUNT, BATCH = 96, 8


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
    images, captions, _ = digits(COUNT)
    chosen = rng.choice(COUNT, len(CORRUPTIONS), replace=False)
    damage = dict(zip(chosen, CORRUPTIONS.values(), strict=True))
    members = {}
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        content = damage[i]() if i in damage else encode(image)
        members |= {} if content is None else {f"{i:03d}.jpg": content}
        members[f"{i:03d}.txt"] = caption.encode()
    dataset = read_shards(write_tar(tmp_path / "a.tar", members))
    with Batches(dataset, SPEC, batch_size=BATCH, max_bad_fraction=0.1) as batches:
        for batch in batches:
            assert_sound(batch)
        assert sorted(batches.bad.reasons) == sorted(chosen)


def test_a_png_named_jpg_is_read(tmp_path):
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
    images = np.stack([np.full((16, 16, 3), i, np.uint8) for i in range(COUNT)])
    labels = np.arange(COUNT, dtype=np.int32)
    with Batches(from_arrays(images, labels=labels), SPEC, batch_size=COUNT, seed=3) as clean:
        order = clean.indices(0, 0)
    bad = {int(order[i]) for i in (5, 13, 14, 40, COUNT - 1, 7)}
    images = [np.zeros((0, 3), np.uint8) if i in bad else image for i, image in enumerate(images)]
    with Batches(from_arrays(images, labels=labels), SPEC, batch_size=BATCH, seed=3, max_bad_fraction=0.1) as batches:
        for step in range(batches.steps):
            expected = [replacement(order, bad, place) for place in range(step * BATCH, (step + 1) * BATCH)]
            batch, indices = batches.batch_and_indices(0, step)
            assert list(batch["label"]) == expected and list(indices) == expected
        assert order[15] in batches.batch(0, 0)["label"]  # in place of 5: 13 and 14 are bad too
        assert set(batches.bad.reasons) == bad


def test_a_resumed_run_has_the_same_batches_and_logs_nothing_twice(class_folders, tmp_path, rng):
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


def test_bad_records_are_left_out_without_replacement(class_folders):
    dataset = read_folder(class_folders)
    for i in (0, 1, 9):
        corrupt(class_folders / dataset.names[i], b"")
    options = {"batch_size": BATCH, "shuffle": False, "replace_bad": False, "drop_last": False, "max_bad_fraction": 0.1}
    with Batches(dataset, SPEC, **options) as batches:
        labels = [batch["label"] for batch in batches]
        kept = [batches.batch_and_indices(0, step)[1] for step in range(batches.steps)]
        assert_sound(batches.batch(0, 0), BATCH - 2)
    assert [len(part) for part in labels[:3]] == [BATCH - 2, BATCH - 1, BATCH]
    assert np.array_equal(np.concatenate(labels), np.delete(dataset.labels, [0, 1, 9]))
    assert np.array_equal(np.concatenate(kept), np.delete(np.arange(COUNT), [0, 1, 9]))


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


def test_a_full_disk_loses_no_log_entry_and_does_not_end_the_run(tmp_path, monkeypatch):
    log, write = tmp_path / "bad.jsonl", os.write
    bad = BadSamples(["a", "b", "c"], log, 1.0)

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.warns(UserWarning, match="bad.jsonl cannot be written for now: .*No space left"):
        bad.add(0, "torn")
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))
    bad.add(1, "empty")
    monkeypatch.setattr(os, "write", write)
    bad.add(2, "text")
    assert [(entry["name"], entry["reason"]) for entry in lines(log)] == [("a", "torn"), ("b", "empty"), ("c", "text")]
    with pytest.raises(ValueError, match="no such folder"):
        BadSamples(["a"], tmp_path / "none" / "bad.jsonl")


def test_one_log_may_serve_two_data_sets(tmp_path):
    log = tmp_path / "bad.jsonl"
    BadSamples(["a", "b"], log, 1.0).add(0, "empty")
    other = BadSamples(["c", "b"], log, 1.0)
    assert len(other) == 0
    other.add(0, "text")
    assert BadSamples(["a", "b"], log).reasons == {0: "empty"} and BadSamples(["c", "b"], log).reasons == {0: "text"}


def test_a_data_set_without_good_records_ends_the_run():
    images = [np.zeros((0, 3), np.uint8)] * 4
    with (
        Batches(from_arrays(images), SPEC, batch_size=2, max_bad_fraction=1.0) as batches,
        pytest.raises(TooManyBadSamples, match="all 4 samples are bad"),
    ):
        list(batches)


def test_errors_of_the_transform_or_tokenizer_make_a_record_bad():
    images, captions, _ = digits(4)
    images = [*images[:3], np.zeros((9000, 1, 3), np.uint8)]

    def tokenize(texts):
        if captions[1] in texts:
            raise ValueError("too long")
        return np.ones((len(texts), 5), np.int32)

    dataset = from_arrays(images, captions)
    spec = PreprocessSpec(image_size=224)
    with Batches(dataset, spec, batch_size=4, tokenize=tokenize, max_bad_fraction=0.5) as batches:
        assert batches[0]["tokens"].shape == (4, 5)
        assert batches.bad.reasons[1] == "too long" and "224x2016000" in batches.bad.reasons[3]


def test_system_errors_are_not_bad_records(class_folders):
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
