"""Batches are functions of (seed, epoch, step), whoever asks, in whatever order, with any threads and ranks."""

import concurrent.futures
import gc
import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import bench_data
import numpy as np
import pytest
from data_writers import WORDS, digits, write_class_folders, write_csv, write_shards

from zoo.data import (
    CLASSIFICATION,
    CONTRASTIVE,
    Augment,
    Batches,
    Mix,
    RandAugment,
    from_arrays,
    read_csv,
    read_folder,
    read_shards,
)
from zoo.data.preprocess import PreprocessSpec, batch

ROOT = Path(__file__).resolve().parent.parent
SPEC = PreprocessSpec(image_size=16)
COUNT = 60


def tokenize(texts):
    """Letters as numbers: (N, 40)."""
    rows = [[ord(letter) for letter in text[:40].ljust(40)] for text in texts]
    return np.array(rows)


def numbered(count: int):
    """A data set whose labels are the record numbers; the images are tiny."""
    return from_arrays(np.zeros((count, 2, 2), np.uint8), labels=np.arange(count))


TINY = PreprocessSpec(image_size=2)


def labels_of(batches: Batches, epoch: int) -> list[int]:
    return [int(label) for one in batches.epoch(epoch) for label in one["label"]]


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def full(threads=2, prefetch=2, seed=7, **options) -> Batches:
    """Batches with everything on."""
    options = {"batch_size": 8, "augment": CLASSIFICATION, "mix": Mix(10), "tokenize": tokenize, **options}
    return Batches(from_arrays(*digits(COUNT)), SPEC, seed=seed, threads=threads, prefetch=prefetch, **options)


# --- what a batch is ---


def test_a_batch_has_its_documented_arrays():
    with full() as batches:
        one = batches.batch(0, 0)
    assert {name: (array.dtype.name, array.shape) for name, array in one.items()} == {
        "images": ("float32", (8, 16, 16, 3)),
        "tokens": ("int32", (8, 40)),
        "label": ("int32", (8,)),
        "target": ("float32", (8, 10)),
    }
    assert all(np.isfinite(array).all() for array in one.values())


def test_without_augmentation_images_are_those_of_evaluation(tmp_path):
    images, captions, labels = digits(COUNT)
    spec = PreprocessSpec(image_size=(12, 20), crop_pct=0.9)
    with Batches(from_arrays(images, captions, labels), spec, batch_size=7, shuffle=False, drop_last=False) as batches:
        parts = list(batches)
    assert [len(part["label"]) for part in parts] == [7] * 8 + [4] and len(batches) == 9
    assert np.array_equal(np.concatenate([part["images"] for part in parts]), batch(list(images), spec))
    assert np.array_equal(np.concatenate([part["label"] for part in parts]), labels)
    assert parts[0].keys() == {"images", "label"}


def test_layouts_give_the_same_batches(tmp_path):
    images, captions, labels = digits(COUNT)
    datasets = [
        from_arrays(images, captions, labels),
        read_csv(write_csv(tmp_path / "csv", COUNT), label_key="class", class_names=WORDS),
        read_shards(write_shards(tmp_path / "tar", COUNT)),
    ]
    options = {"batch_size": 8, "augment": CLASSIFICATION, "mix": Mix(10), "tokenize": tokenize, "seed": 2}
    seen = []
    for dataset in datasets:
        with Batches(dataset, SPEC, **options) as batches:
            seen.append([batches.batch(1, step) for step in range(batches.steps)])
    assert all(equal(a, b) for others in seen[1:] for a, b in zip(seen[0], others, strict=True))


def test_class_folders_feed_a_classifier(tmp_path):
    dataset = read_folder(write_class_folders(tmp_path, COUNT))
    with Batches(dataset, SPEC, batch_size=COUNT) as batches:
        one = batches[0]
    assert np.array_equal(np.bincount(one["label"]), np.bincount(digits(COUNT)[2]))


def test_a_caption_function_has_its_own_random_stream():
    def caption(record, rng):
        return f"{WORDS[record.label]} {rng.integers(1000)}"

    options = {"batch_size": 8, "tokenize": tokenize, "caption": caption}
    images, _, labels = digits(COUNT)
    dataset = from_arrays(images, labels=labels)
    with (
        Batches(dataset, SPEC, **options) as plain,
        Batches(dataset, SPEC, augment=CONTRASTIVE, **options) as augmented,
    ):
        tokens = plain.batch(2, 3)["tokens"]
        assert np.array_equal(tokens, augmented.batch(2, 3)["tokens"])
        assert not np.array_equal(tokens, plain.batch(3, 3)["tokens"])
        texts = ["".join(map(chr, row)).split() for row in tokens]
        assert [word for word, _ in texts] == [WORDS[label] for label in plain.batch(2, 3)["label"]]
        assert len({number for _, number in texts}) > 4


# --- determinism ---


def test_a_batch_is_independent_of_threads_prefetch_and_access_order():
    with full(threads=1, prefetch=0) as plain:
        expected = {(epoch, step): plain.batch(epoch, step) for epoch in range(2) for step in range(plain.steps)}
        for i, place in enumerate(expected):
            assert equal(plain[i], expected[place])
    for threads, prefetch in ((1, 3), (2, 1), (5, 4)):
        with full(threads, prefetch) as batches:
            places = list(expected)
            np.random.default_rng(threads).shuffle(places)
            assert all(equal(batches.batch(*place), expected[place]) for place in places)


def test_a_batch_is_the_same_in_another_process():
    code = (
        "import hashlib, sys; sys.path[:0] = ['tests', '.']; from test_data_batches import full\n"
        "one = full(threads=3).batch(4, 2)\n"
        "print(hashlib.sha256(b''.join(one[key].tobytes() for key in sorted(one))).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    with full() as batches:
        one = batches.batch(4, 2)
    assert run.stdout.strip() == hashlib.sha256(b"".join(one[key].tobytes() for key in sorted(one))).hexdigest()


def test_several_threads_may_share_batches():
    with full() as batches, concurrent.futures.ThreadPoolExecutor(4) as pool:
        expected = [batches[i] for i in range(20)]
        again = list(pool.map(batches.__getitem__, range(20)))
        backwards = list(pool.map(batches.__getitem__, reversed(range(20))))
    assert all(map(equal, expected, again)) and all(map(equal, expected, reversed(backwards)))


def test_seed_epoch_and_record_each_change_the_augmentation():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    dataset = from_arrays([image] * 8, labels=np.arange(8))
    with (
        Batches(dataset, SPEC, batch_size=8, seed=1, augment=Augment()) as batches,
        Batches(dataset, SPEC, batch_size=8, seed=2, augment=Augment()) as other,
    ):
        first = batches.batch(0, 0)["images"]
        images = [*first, *batches.batch(1, 0)["images"], *other.batch(0, 0)["images"]]
        assert len({image.tobytes() for image in images}) == 24
        rows = dict(zip(batches.batch(0, 0)["label"], first, strict=True))
        assert all(np.array_equal(batches.sample(0, i)["images"], rows[i]) for i in range(8))


def test_the_identity_names_a_change():
    one, other = full().identity, full(batch_size=4, augment=None).identity
    assert {name for name in one if one[name] != other[name]} == {"batch_size", "augment"}
    assert one["data"].startswith(f"{len(full().dataset)} records, ")


def test_every_argument_that_changes_batches_changes_the_fingerprint_and_no_other():
    options = [
        *({}, {"seed": 8}, {"batch_size": 4}, {"shuffle": False}, {"drop_last": False}, {"replace_bad": False}),
        *({"augment": None}, {"augment": Augment(flip=0.1)}, {"mix": Mix(10, mixup=0.1)}, {"mix": None}),
        *({"augment": Augment(rand_augment=RandAugment(magnitude=3))}, {"tokenize": None}),
        {"caption": lambda record, _: record.caption},
    ]
    assert len({full(**option).fingerprint for option in options}) == len(options)
    same = [{"threads": 1}, {"prefetch": 0}, {"world_size": 2}, {"world_size": 2, "rank": 1}, {"max_bad_fraction": 0.5}]
    assert {full(**option).fingerprint for option in same} == {full().fingerprint}


# --- order ---


def test_an_epoch_shows_every_record_once_and_each_epoch_has_its_own_order():
    with Batches(numbered(96), TINY, batch_size=8, seed=1) as batches:
        epochs = [labels_of(batches, epoch) for epoch in range(3)]
        assert all(sorted(order) == list(range(96)) for order in epochs)
        assert epochs[0] != epochs[1] != epochs[2] != list(range(96))
        assert np.array_equal(batches.indices(1, 2), epochs[1][16:24])
    with Batches(numbered(96), TINY, batch_size=8, seed=2) as batches:
        assert labels_of(batches, 0) != epochs[0]
    with Batches(numbered(96), TINY, batch_size=8, shuffle=False) as batches:
        assert labels_of(batches, 5) == list(range(96))


def test_shuffling_is_uniform():
    """Each record is as often at each place, and neighbours are not neighbours more often than by chance."""
    count, epochs = 12, 3000
    with Batches(numbered(count), TINY, batch_size=count, seed=4) as batches:
        orders = np.array([batches.indices(epoch, 0) for epoch in range(epochs)])
    places = np.zeros((count, count))
    for order in orders:
        places[order, np.arange(count)] += 1
    expected = epochs / count
    chi_square = ((places - expected) ** 2 / expected).sum()
    degrees = (count - 1) ** 2
    assert abs(chi_square - degrees) < 4 * np.sqrt(2 * degrees)
    neighbours = (np.diff(orders, axis=1) == 1).mean()
    chance = 1 / count
    assert abs(neighbours - chance) < 4 * np.sqrt(chance / (epochs * (count - 1)))


def test_what_drop_last_leaves_out_changes_every_epoch():
    with Batches(numbered(10), TINY, batch_size=4) as batches:
        left_out = [frozenset(range(10)) - set(labels_of(batches, epoch)) for epoch in range(20)]
    assert all(len(rest) == 2 for rest in left_out) and len(set(left_out)) > 10


def test_sizes_of_every_kind(rng):
    """For any number of records, batch size, ranks and threads: all parts together are the order."""
    for _ in range(40):
        count, ranks = int(rng.integers(1, 70)), int(rng.integers(1, 5))
        size = ranks * int(rng.integers(1, 9))
        drop_last = bool(rng.random() < 0.5)
        if drop_last and count < size:
            continue
        options = {"batch_size": size, "seed": int(rng.integers(99)), "drop_last": drop_last}
        parts = [
            Batches(
                numbered(count), TINY, rank=rank, world_size=ranks, threads=1, prefetch=int(rng.integers(3)), **options
            )
            for rank in range(ranks)
        ]
        assert {part.steps for part in parts} == {count // size if drop_last else -(-count // size)}
        seen = [int(i) for step in range(len(parts[0])) for part in parts for i in part.batch(1, step)["label"]]
        with Batches(numbered(count), TINY, **options) as whole:
            assert seen == labels_of(whole, 1)
        assert sorted(seen) == sorted(set(seen)) and len(seen) == (count // size * size if drop_last else count)
        for part in parts:
            part.close()


@pytest.mark.parametrize("mix", [None, Mix(10), Mix(10, mixup=0), Mix(10, cutmix=0)])
def test_ranks_together_have_the_batch_of_one_process(mix):
    with full(mix=mix) as whole, full(mix=mix, world_size=2) as left, full(mix=mix, world_size=2, rank=1) as right:
        for epoch, step in ((0, 0), (0, 5), (3, 2)):
            parts = [half.batch(epoch, step) for half in (left, right)]
            joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            assert equal(joined, whole.batch(epoch, step))


def test_ranks_agree_on_what_replaces_bad_records():
    images, captions, labels = digits(COUNT)
    images = [np.zeros((0, 3), np.uint8) if i % 7 == 0 else image for i, image in enumerate(images)]
    dataset = from_arrays(images, captions, labels)
    options = {"batch_size": 12, "augment": CONTRASTIVE, "tokenize": tokenize, "max_bad_fraction": 0.2}
    whole = Batches(dataset, SPEC, **options)
    parts = [Batches(dataset, SPEC, rank=rank, world_size=3, **options) for rank in range(3)]
    for step in range(whole.steps):
        rows = [part.batch(0, step) for part in parts]
        assert equal({key: np.concatenate([row[key] for row in rows]) for key in rows[0]}, whole.batch(0, step))


# --- threads and memory ---


class Watched:
    """An augmentation that counts how often it is called, and can be held up."""

    def __init__(self):
        self.calls, self.gate = 0, threading.Event()
        self.gate.set()
        self.lock = threading.Lock()

    def __call__(self, image, rng, spec):
        self.gate.wait(20)
        with self.lock:
            self.calls += 1
        return np.zeros((*spec.size, 3), np.float32)


def settle(watched: Watched, expected: int) -> int:
    """Calls, some time after as many as expected were made."""
    deadline = time.monotonic() + 20
    while watched.calls < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    return watched.calls


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_exactly_prefetch_batches_are_made_in_advance(prefetch):
    watched = Watched()
    with Batches(numbered(400), TINY, batch_size=4, augment=watched, prefetch=prefetch) as batches:
        batches.batch(0, 0)
        assert settle(watched, 4 * (1 + prefetch)) == 4 * (1 + prefetch)
        batches.batch(0, 1)
        assert settle(watched, 4 * (2 + prefetch)) == 4 * (2 + prefetch)
        batches.batch(7, 50)  # what was made ahead is let go
        assert settle(watched, 4 * (3 + 2 * prefetch)) == 4 * (3 + 2 * prefetch)
        assert len(batches._jobs) == prefetch


def test_prefetching_crosses_the_end_of_an_epoch():
    watched = Watched()
    with Batches(numbered(8), TINY, batch_size=4, augment=watched, prefetch=1) as batches:
        batches.batch(0, 1)
        settle(watched, 8)
        watched.gate.clear()  # from here on nothing can be made, and the next batch is there
        assert sorted(batches.batch(1, 0)["label"]) == sorted(batches.indices(1, 0))
        watched.gate.set()


def test_threads_end_with_close_and_with_the_object():
    def alive():
        return [thread for thread in threading.enumerate() if thread.name.startswith("zoo-data")]

    gc.collect()
    before = set(alive())
    batches = Batches(numbered(8), TINY, batch_size=4, threads=3)
    batches.batch(0, 0)
    assert set(alive()) - before
    batches.close()
    forgotten = Batches(numbered(8), TINY, batch_size=4, threads=3)
    forgotten.batch(0, 0)
    del forgotten
    deadline = time.monotonic() + 10
    while set(alive()) - before and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
    assert not set(alive()) - before


def test_an_error_in_a_custom_function_is_raised_and_not_a_bad_sample():
    def wrong(image, rng, spec):
        raise KeyError("a mistake")

    with Batches(numbered(8), TINY, batch_size=4, augment=wrong) as batches, pytest.raises(KeyError, match="a mistake"):
        batches[0]
    assert len(batches.bad) == 0
    with (
        Batches(numbered(8), TINY, batch_size=4, augment=lambda *_: np.zeros((1, 1, 3), np.float32)) as batches,
        pytest.raises(TypeError, match=r"shape \(1, 1, 3\), not \(2, 2, 3\)"),
    ):
        batches[0]


# --- arguments ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0; it must be an integer of at least 1"),
        ({"batch_size": 2.0}, "batch_size=2.0"),
        ({"seed": -1}, "seed=-1"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"threads": -1}, "threads=-1"),
        ({"world_size": 3}, "batch_size=4, rank=0, world_size=3; .* must divide batch_size"),
        ({"rank": 1}, "rank=1, world_size=1"),
        ({"batch_size": 9}, "8 records do not fill a batch of 9"),
        ({"tokenize": tokenize}, "the data has no captions"),
        ({"mix": Mix(8), "batch_size": 3}, "even batch per rank"),
        ({"max_bad_fraction": 2}, r"max_bad_fraction=2; it must be in \[0, 1\]"),
    ],
)
def test_arguments_out_of_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Batches(numbered(8), TINY, **{"batch_size": 4, **options})


def test_invalid_epochs_and_steps_are_refused():
    with Batches(numbered(8), TINY, batch_size=4) as batches:
        for epoch, step in ((0, 2), (-1, 0), (0, -1)):
            with pytest.raises(IndexError, match="an epoch has 2 steps"):
                batches.batch(epoch, step)
        with pytest.raises(IndexError):
            batches[-1]
        assert len(list(batches)) == 2 and len(list(batches.epoch(3, start=1))) == 1


# --- the script that measures ---


def test_throughput_is_compared_with_a_plain_loop(tmp_path):
    folder = write_class_folders(tmp_path, COUNT)
    rates = bench_data.measure(folder, image_size=16, threads=2, seconds=0.02)
    names = [f"{name}, {n} threads" for name in ("evaluation", "contrastive", "classification") for n in (1, 2)]
    assert list(rates) == ["plain PIL loop", *names] and all(rate > 0 for rate in rates.values())
    dataset, spec = read_folder(folder), PreprocessSpec(image_size=12)
    plain = next(iter(bench_data.plain_loop(dataset, folder, spec)))["images"]
    with Batches(dataset, spec, batch_size=bench_data.BATCH_SIZE, shuffle=False) as batches:
        assert np.allclose(plain, batches[0]["images"], rtol=0, atol=1e-5)
