"""Zero-shot classification, retrieval and probes with NumPy functions as towers, whose results are known exactly."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from data_writers import write_shards
from PIL import Image

from clip import CLASS_NAMES, Tokenizer, tokenize
from zoo.data import from_arrays, open_dataset
from zoo.data.datasets import Labelled, load_labelled, read_names
from zoo.data.preprocess import PreprocessSpec
from zoo.evaluation import linear_probe, metrics, retrieval, zero_shot
from zoo.evaluation.classifier import Classifier, average, create_classifier
from zoo.evaluation.retrieval import encode_pairs, evaluate_retrieval, retrieval_metrics
from zoo.evaluation.zero_shot import evaluate_zero_shot
from zoo.inference.encoder import Encoder
from zoo.utils.arrays import unit_rows

COLOURS = ("black", "dark", "grey", "light", "white")  # pixels of class k are 60 k
SPEC = PreprocessSpec(image_size=4, mean=(0.0,) * 3, std=(1.0,) * 3)


def tokenizer(texts):
    """Return the colour that a text's last word names, int32 (N, 1)."""
    return np.array([[COLOURS.index(text.rstrip(".").split()[-1])] for text in texts], np.int32)


def see(images):
    """Return the colour of each image as one-hot rows: float32 (B, 4, 4, 3) → (B, 5)."""
    return 3.0 * np.eye(5, dtype=np.float32)[np.rint(images.mean(axis=(1, 2, 3)) * 255 / 60).astype(int)]


@pytest.fixture
def encoder():
    """An encoder that recognises the five colours."""
    return Encoder(
        see, lambda tokens: np.eye(5, dtype=np.float32)[tokens[:, 0]], SPEC, 5, scale=10.0, tokenizer=tokenizer
    )


def paint(label, side=6):
    return np.full((side, side, 3), 60 * label, np.uint8)


def labelled(labels, seen=None):
    """Return a data set of images with the colours `seen` and the given labels."""
    images = [paint(label) for label in (labels if seen is None else seen)]
    return Labelled("painted", from_arrays(images, labels=labels), COLOURS, ("a photo of something {}.",))


@pytest.fixture
def colour_folders(tmp_path):
    """A function that creates tmp_path/NAME with one folder per colour and an image in each."""

    def make(name, colours=COLOURS[:3]):
        for colour in colours:
            (tmp_path / name / colour).mkdir(parents=True)
            Image.fromarray(paint(COLOURS.index(colour))).save(tmp_path / name / colour / "a.png")
        return tmp_path / name

    return make


def test_a_perfect_pair_scores_100_percent(encoder):
    result, logits, kept = evaluate_zero_shot(encoder, labelled([0, 1, 2, 3, 4, 4]))
    assert (result.accuracy, result.accuracy_at_5, result.mean_per_class_recall) == (1.0, 1.0, 1.0)
    assert (result.images, result.classes, result.templates, result.bad) == (6, 5, 1, {})
    np.testing.assert_allclose(logits[0], [10, 0, 0, 0, 0], atol=1e-5)
    assert kept.tolist() == list(range(6))


def test_mistakes_are_counted_in_the_confusion_matrix(encoder):
    result, *_ = evaluate_zero_shot(encoder, labelled([0, 0, 0, 1, 2], seen=[0, 0, 1, 1, 3]))
    assert result.accuracy == pytest.approx(3 / 5)
    assert result.mean_per_class_recall == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert result.confusion[0] == [2, 1, 0, 0, 0] and result.confusion[2] == [0, 0, 0, 1, 0]
    low, high = result.interval
    assert low < 0.6 < high


def test_a_damaged_image_is_left_out_and_named(encoder, tmp_path):
    for label in (0, 1, 2):
        folder = tmp_path / COLOURS[label]
        folder.mkdir()
        Image.fromarray(paint(label)).save(folder / "a.png")
    (tmp_path / "dark" / "b.png").write_bytes(b"not an image")
    data = load_labelled(f"folder:{tmp_path}")
    assert data.class_names == ("black", "dark", "grey")
    result, _, kept = evaluate_zero_shot(encoder, data)
    assert (result.images, result.accuracy, kept.tolist()) == (3, 1.0, [0, 1, 3])
    assert list(result.bad) == ["dark/b.png"] and "not an image" in result.bad["dark/b.png"]


def test_data_without_a_readable_image_is_refused(encoder, colour_folders):
    good, bad = colour_folders("good"), colour_folders("bad")
    for path in bad.glob("*/a.png"):
        path.write_bytes(b"not an image")
    good, bad = (load_labelled(f"folder:{folder}") for folder in (good, bad))
    probe = linear_probe.evaluate_probe
    for evaluate, data in ((evaluate_zero_shot, [bad]), (probe, [bad, good]), (probe, [good, bad])):
        with pytest.raises(ValueError, match="none of the 3 images can be read; the first, 'black/a.png': .*image"):
            evaluate(encoder, *data)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_batch_size_does_not_change_embeddings(batch_size, encoder):
    data = labelled([0, 1, 2, 3, 4] * 3)
    whole = evaluate_zero_shot(encoder, data)
    parts = evaluate_zero_shot(dataclasses.replace(encoder, batch_size=batch_size), data)
    assert parts[0] == whole[0]
    np.testing.assert_array_equal(parts[1], whole[1])


def test_batches_of_fixed_shapes_are_padded_and_cut(encoder):
    shapes = []

    def images(batch):
        shapes.append(len(batch))
        return see(batch)

    data = labelled([0, 1, 2, 3, 4, 0, 1])
    fixed = dataclasses.replace(encoder, images=images, fixed=True, batch_size=4)
    np.testing.assert_array_equal(evaluate_zero_shot(fixed, data)[1], evaluate_zero_shot(encoder, data)[1])
    assert shapes == [4, 4]


def test_a_classifier_averages_prompts_and_then_normalises(encoder):
    made = create_classifier(encoder, {"dim": ["it is dark.", "it is grey."], "bright": ["it is white."]})
    expected = np.zeros((5, 2))
    expected[[1, 2], 0], expected[4, 1] = 2**-0.5, 1
    np.testing.assert_allclose(made.matrix, expected, atol=1e-6)
    assert made.class_names == ("dim", "bright")
    np.testing.assert_allclose(made.probabilities(expected.T.astype(np.float32)).sum(axis=1), 1)


def test_classifiers_are_saved_loaded_and_averaged(encoder, tmp_path):
    one = create_classifier(encoder, ["dark", "grey"], ["a {}"])
    one.save(tmp_path / "c.safetensors")
    again = Classifier.load(tmp_path / "c.safetensors")
    assert (again.class_names, again.scale, again.bias) == (("dark", "grey"), 10.0, 0.0)
    np.testing.assert_array_equal(again.matrix, one.matrix)
    other = dataclasses.replace(one, matrix=np.ascontiguousarray(one.matrix[:, ::-1]))
    mean = average([one, other])
    np.testing.assert_allclose(np.linalg.norm(mean.matrix, axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(mean.matrix[:, 0], mean.matrix[:, 1], atol=1e-6)
    np.testing.assert_allclose(average([one, other], [1, 0]).matrix, one.matrix, atol=1e-6)
    with pytest.raises(ValueError, match="different classes"):
        average([one, create_classifier(encoder, ["dark", "white"], ["a {}"])])


def test_a_classifier_has_the_activation_of_its_pair(encoder, tmp_path):
    sigmoids = dataclasses.replace(encoder, bias=-5.0, activation="sigmoid")
    made = create_classifier(sigmoids, ["dark", "grey"], ["a {}"])
    made.save(tmp_path / "c.safetensors")
    again = Classifier.load(tmp_path / "c.safetensors")
    vectors = np.eye(5, dtype=np.float32)
    expected = 1 / (1 + np.exp(5.0 - 10.0 * vectors[:, [1, 2]]))
    np.testing.assert_allclose(again.probabilities(vectors), expected, rtol=1e-6)
    softmax = create_classifier(sigmoids, ["dark", "grey"], ["a {}"], activation="softmax")
    np.testing.assert_allclose(softmax.probabilities(vectors).sum(axis=1), 1)
    with pytest.raises(ValueError, match="activations"):
        average([made, softmax])
    with pytest.raises(ValueError, match="is a set"):
        create_classifier(encoder, {"dark", "grey"})
    result, logits, _ = evaluate_zero_shot(sigmoids, labelled([0, 1, 2, 3, 4]))
    best = 1 / (1 + np.exp(-logits.max(axis=1)))
    assert result.calibration["confidence"] == pytest.approx(best.mean())


def test_a_classifier_records_its_model(encoder, tmp_path):
    class Fingerprinted:
        """A substitute for `ClipPipeline`, with a fingerprint."""

        scale, bias, embed_texts = 1.0, 0.0, encoder.embed_texts

        def __init__(self, fingerprint):
            self.fingerprint = fingerprint

    path = tmp_path / "c.safetensors"
    one, same, other = (create_classifier(Fingerprinted(f), ["dark", "grey"]) for f in ("a" * 64, "a" * 64, "b" * 64))
    one.save(path)
    assert Classifier.load(path, model="a" * 64).model == Classifier.load(path).model == "a" * 64
    with pytest.raises(ValueError, match="made with another model .aaaaaaaaaaaaaaaa…. than the images .bbbb"):
        Classifier.load(path, model="b" * 64)
    assert (average([one, same]).model, average([one, other]).model) == ("a" * 64, None)
    create_classifier(encoder, ["dark", "grey"]).save(path)  # without a fingerprint there is no check
    assert Classifier.load(path, model="b" * 64).model is None


def test_other_files_are_refused_as_classifiers(tmp_path):
    np.savez(tmp_path / "c.npz", matrix=np.eye(2))
    with pytest.raises(ValueError, match="not a saved classifier"):
        Classifier.load(tmp_path / "c.npz")


# Data sets.


def test_the_digits_are_the_held_out_ones():
    data = load_labelled("digits")
    assert (len(data.records), data.class_names[7], len(data.templates)) == (360, "seven", 4)
    assert len(load_labelled("digits", split="train").records) == 1437


def test_templates_and_names_from_files(tmp_path):
    (tmp_path / "t.txt").write_text("a {}\n\n the {}\n", encoding="utf-8")
    (tmp_path / "n.json").write_text(json.dumps(list("abcdefghij")))
    data = load_labelled("digits", class_names=tmp_path / "n.json", templates=tmp_path / "t.txt")
    assert (data.templates, data.class_names) == (("a {}", "the {}"), tuple("abcdefghij"))
    assert len(load_labelled("digits", templates="imagenet").templates) == 80


@pytest.mark.parametrize(
    "option, content, message",
    [
        ("class_names", b'{"zero": ', "n.txt is not JSON: Expecting value"),
        ("class_names", b'["zero", ', "n.txt is not JSON"),
        ("class_names", "grün\n".encode("latin-1"), "n.txt is not UTF-8"),
        ("templates", b'["a {}"', "n.txt is not JSON"),
        ("templates", "für {}\n".encode("latin-1"), "n.txt is not UTF-8"),
        ("class_names", b"\n\n", "class_names must be strings, at least one"),
    ],
)
def test_files_that_cannot_be_read_are_named(option, content, message, tmp_path):
    (tmp_path / "n.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_labelled("digits", **{option: tmp_path / "n.txt"})


@pytest.mark.parametrize("class_names", [None, ["dark"]])
def test_captions_are_refused_as_classes(class_names, colour_folders):
    folder = colour_folders("captioned", ["dark"])
    (folder / "dark" / "a.txt").write_text("something dark")
    with pytest.raises(ValueError, match="has no labels"):
        load_labelled(f"folder:{folder}", class_names=class_names)


def test_classes_may_have_their_own_prompts(encoder, tmp_path):
    own = {"pitch": ["so black"], "dusk": "quite dark", "fog": ["grey"], "day": ["light", "so light"], "snow": ["grey"]}
    (tmp_path / "own.json").write_text(json.dumps(own))
    names, prompts = read_names(tmp_path / "own.json")
    assert names == tuple(own) and (prompts["dusk"], prompts["day"]) == (("quite dark",), ("light", "so light"))
    data = dataclasses.replace(labelled([0, 1, 2, 3, 4]), class_names=names, templates=(), prompts=prompts)
    result, *_ = evaluate_zero_shot(encoder, data)
    assert result.accuracy == pytest.approx(4 / 5)  # snow and fog have the same prompt
    assert "5 classes, their own prompts" in zero_shot.to_text(result)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "digts"}, "Unknown data set 'digts'. Allowed: digits"),
        ({"name": "digits", "templates": "nope"}, "is neither a file nor one of simple"),
        ({"name": "digits", "class_names": ["a", "b"]}, "labels up to 9, but 2 class names"),
        ({"name": "digits", "class_names": []}, "at least one"),
        ({"name": "digits", "class_names": {"a": ["a 0"], "b": 5}}, "the prompts of 'b' must be strings"),
        (
            {"name": "digits", "class_names": {"a": ["a 0"]}, "templates": "simple"},
            "these classes have complete prompts; templates cannot be given as well",
        ),
        (
            {"name": "digits", "class_names": {"zero": None}},
            "the prompts of 'zero' must be strings, at least one, got None",
        ),
        ({"name": "folder:/no/such/folder"}, "is not a folder"),
        ({"name": "digits", "data": "x"}, "data='x' is for cifar10, .*fashion_mnist; 'digits' takes no data"),
        ({"name": "mnist", "data": "nosuch"}, "data='nosuch' does not exist"),
        ({"name": "cifar10", "data": "nosuch.tar.gz"}, "data='nosuch.tar.gz' does not exist"),
    ],
)
def test_invalid_data_sets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_labelled(**options)


def test_class_names_order_or_rename_the_folders(colour_folders):
    place = f"folder:{colour_folders('all')}"  # black, dark, grey
    assert load_labelled(place, class_names=["grey", "white", "dark", "black"]).records.labels.tolist() == [3, 2, 0]
    assert load_labelled(place, class_names=["night", "dusk", "fog"]).records.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "names, message",
    [
        (["grey", "dark", "blak"], "no class name for its folder 'black'"),
        (["grey", "dusk", "night"], "no class name for its folders 'black', 'dark'"),
        (["night", "dusk"], "2 class names for 3 class folders"),
        (["night", "dusk", "fog", "day"], "4 class names for 3 class folders"),
    ],
)
def test_class_names_must_cover_all_folders(names, message, colour_folders):
    with pytest.raises(ValueError, match=message):
        load_labelled(f"folder:{colour_folders('all')}", class_names=names)


# Retrieval.


@pytest.fixture
def pairs_csv(tmp_path):
    """Three images; the first has two captions, the third a wrong one; the fourth image is damaged."""
    rows = [("a.png", "this is black"), ("a.png", "so black"), ("b.png", "grey"), ("c.png", "dark"), ("d.png", "white")]
    for name, label in (("a.png", 0), ("b.png", 2), ("c.png", 4)):
        Image.fromarray(paint(label)).save(tmp_path / name)
    (tmp_path / "d.png").write_bytes(b"")
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("filepath", "caption"), *rows])
    return tmp_path / "pairs.csv"


def test_retrieval_counts_each_image_once_and_any_of_its_captions(encoder, pairs_csv):
    result, pairs = evaluate_retrieval(encoder, open_dataset(pairs_csv, needs="captions"))
    assert (result.images, result.texts, list(result.bad)) == (3, 4, ["d.png"])
    assert pairs.owners.tolist() == [0, 0, 1, 2]
    # No image is "dark": all three tie at cosine 0, and the positive ranks last.
    assert result.text_to_image["recall_at_1"] == pytest.approx(3 / 4)
    assert result.text_to_image["mean_rank"] == pytest.approx((1 + 1 + 1 + 3) / 4)
    assert result.image_to_text["recall_at_1"] == pytest.approx(2 / 3)
    assert result.image_to_text["queries"] == 3


def test_more_captions_than_the_limit_are_refused_before_anything_is_embedded(encoder, pairs_csv):
    records = open_dataset(pairs_csv, needs="captions")
    with pytest.raises(ValueError, match="pairs has 5 captions; at most 4 are compared, .* raise max_rows"):
        evaluate_retrieval(dataclasses.replace(encoder, images=None, texts=None), records, max_rows=4)
    assert evaluate_retrieval(encoder, records, max_rows=5)[0].texts == 4


def test_blocks_of_scores_become_smaller_with_more_candidates(rng, monkeypatch):
    images, owners = unit_rows(rng.standard_normal((40, 8))), np.arange(90) % 40
    texts = unit_rows(images[owners] + 0.5 * rng.standard_normal((90, 8)))
    found = retrieval_metrics(images, texts, owners)
    sizes = []
    monkeypatch.setattr("zoo.evaluation.metrics.MOST_SCORES", 200)
    best_ranks = metrics.best_ranks
    monkeypatch.setattr(metrics, "best_ranks", lambda *both: sizes.append(both[0].size) or best_ranks(*both))
    assert retrieval_metrics(images, texts, owners) == found and max(sizes) <= 200


def test_several_captions_of_an_image_are_all_correct():
    images, owners = np.eye(3, 4, dtype=np.float32), np.array([2, 0, 0, 2, 0])  # image 1 has no caption
    found = retrieval_metrics(images, images[owners], owners)
    assert (found["image_to_text"]["queries"], found["text_to_image"]["queries"]) == (2, 5)
    assert found["image_to_text"]["recall_at_1"] == found["text_to_image"]["recall_at_1"] == 1.0
    texts = images[owners].copy()
    texts[1] = images[1]  # caption 1 of image 0 looks like image 1, which is then closer to it than images 0 and 2 are
    found = retrieval_metrics(images, texts, owners)
    assert found["image_to_text"]["recall_at_1"] == 1.0 and found["text_to_image"]["recall_at_1"] == 0.8


def test_retrieval_from_a_captioned_folder(encoder, tmp_path):
    for i, label in enumerate((1, 3)):
        Image.fromarray(paint(label)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(COLOURS[label])
    pairs, bad = encode_pairs(encoder, open_dataset(tmp_path, needs="captions"))
    assert pairs.captions == ["dark", "light"] and not bad
    np.testing.assert_allclose(pairs.images, pairs.texts)


def test_long_captions_are_truncated_and_counted(encoder):
    """As in CLIP_benchmark, a truncated caption ends with the end token."""
    seen = []

    def read(tokens):
        seen.append(tokens)
        return np.eye(5, dtype=np.float32)[np.arange(len(tokens)) % 5]

    long = "red " * 75  # fills the context length, with start and end tokens
    records = from_arrays([paint(0), paint(1), paint(2)], captions=["red", long, f"{long} blue green"])
    result, pairs = evaluate_retrieval(dataclasses.replace(encoder, texts=read, tokenizer=tokenize), records)
    (tokens,) = seen
    assert (result.texts, result.cut, pairs.captions[2][-10:]) == (3, 1, "blue green")
    np.testing.assert_array_equal(tokens[2], tokens[1])
    assert tokens.shape == (3, 77) and tokens[2, -1] == Tokenizer.eot
    assert "\ntruncated: 1 caption exceeds the context length" in retrieval.to_text(result)
    assert "truncated" not in retrieval.to_text(dataclasses.replace(result, cut=0))


@pytest.mark.parametrize("part, message", [("a.png", "not an image"), ("a.txt", "the caption is empty")])
def test_data_without_a_usable_pair_is_refused(part, message, encoder, tmp_path):
    Image.fromarray(paint(1)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("dark")
    (tmp_path / part).write_bytes(b"x" * (part == "a.png"))
    with pytest.raises(ValueError, match=f"none of the 1 .* the first, 'a.png.*: .*{message}"):
        evaluate_retrieval(encoder, open_dataset(tmp_path, needs="captions"))


def test_labelled_folders_are_refused_as_pairs(tmp_path):
    (tmp_path / "cat").mkdir()
    Image.fromarray(paint(1)).save(tmp_path / "cat" / "a.png")
    with pytest.raises(ValueError, match="has no captions"):
        open_dataset(tmp_path, needs="captions")


# Linear probe.


def test_a_probe_learns_linear_features_and_nothing_else(encoder, rng):
    labels = np.tile(np.arange(5), 20)
    result = linear_probe.evaluate_probe(encoder, labelled(labels), labelled(labels[:25]))
    assert (result.accuracy, result.mean_per_class_recall, result.train_images) == (1.0, 1.0, 100)
    blind = labelled(labels, seen=np.zeros(100, int))
    assert linear_probe.evaluate_probe(encoder, blind, blind).accuracy == pytest.approx(0.2)


def test_a_probe_needs_the_same_classes(encoder):
    other = dataclasses.replace(labelled([0, 1]), class_names=tuple("abcde"))
    with pytest.raises(ValueError, match="differ from the test classes"):
        linear_probe.evaluate_probe(encoder, labelled([0, 1]), other)


# Commands.


@pytest.fixture
def loading(encoder, monkeypatch):
    for module in (zero_shot, retrieval, linear_probe):
        monkeypatch.setattr(module, "open_encoder", lambda *_, **__: encoder)


def test_commands_write_json_and_plots(loading, pairs_csv, tmp_path):
    result = retrieval.run("pair", data=str(pairs_csv), output=str(tmp_path / "r"))
    assert json.loads((tmp_path / "r" / "retrieval.json").read_text())["texts"] == 4
    assert (tmp_path / "r" / "retrieval.png").stat().st_size > 1000
    assert "| text → image | 75.0 % |" in retrieval.to_text(result)
    assert "\nleft out: 1, e.g. d.png: " in retrieval.to_text(result)
    folder = tmp_path / "classes"
    for i, (name, label) in enumerate([("black", 0), ("dark", 1), ("dark", 2)]):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(paint(label)).save(folder / name / f"{i}.png")
    (tmp_path / "t.txt").write_text("{}")
    result = zero_shot.run(
        "pair", dataset=f"folder:{folder}", templates=str(tmp_path / "t.txt"), output=str(tmp_path / "z")
    )
    assert result.accuracy == pytest.approx(2 / 3)  # grey ties between black and dark, and black is first
    assert {path.name for path in (tmp_path / "z").iterdir()} == {"confusion.png", "mistakes.png", "zero_shot.json"}
    assert "accuracy        66.7 %" in zero_shot.to_text(result)


def test_a_probe_of_few_images(encoder):
    test = labelled([0, 1, 2])
    for labels in ([0], [1, 1]):
        with pytest.raises(ValueError, match=f"the {len(labels)} training images are all of class '(black|dark)'"):
            linear_probe.evaluate_probe(encoder, labelled(labels), test)
    result = linear_probe.evaluate_probe(encoder, labelled([0, 1]), labelled([0, 1]))  # too few images to hold one out
    assert (result.accuracy, result.strength) == (1.0, 1.0)


def test_the_probe_command_names_the_images_left_out(loading, colour_folders, tmp_path):
    train, test = colour_folders("train"), colour_folders("test")
    (test / "dark" / "b.png").write_bytes(b"not an image")
    (train / "dark" / "b.png").write_bytes(b"")
    names = tmp_path / "names.json"
    names.write_text(json.dumps(["night", "dusk", "fog"]))
    options = {"train": f"folder:{train}", "class_names": str(names), "output": str(tmp_path / "p")}
    result = linear_probe.run("pair", dataset=f"folder:{test}", **options)
    assert (result.train_images, result.images, result.class_names) == (3, 3, ("night", "dusk", "fog"))
    assert list(result.bad) == list(result.train_bad) == ["dark/b.png"]
    assert "left out        2, e.g. dark/b.png: " in linear_probe.to_text(result)
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"linear_probe.json", "confusion.png"}
    found = json.loads((tmp_path / "p" / "linear_probe.json").read_text())
    assert found["accuracy"] == 1.0 and np.trace(found["confusion"]) == 3
    shards = write_shards(tmp_path / "shards", 20)
    (tmp_path / "digits.txt").write_text("\n".join(CLASS_NAMES["digits"]))
    options = {"train": "digits", "class_names": str(tmp_path / "digits.txt")}
    assert linear_probe.run("pair", dataset=f"shards:{shards}", **options).classes == 10


def test_a_probe_trains_and_tests_on_separate_data(loading, colour_folders, monkeypatch):
    result = linear_probe.run("pair", dataset=f"folder:{colour_folders('a')}", train=f"folder:{colour_folders('b')}")
    assert (result.classes, result.images) == (3, 3) and "3 images to train on" in linear_probe.to_text(result)
    splits = {"test": labelled([0, 1, 2]), "train": labelled([0, 1, 2, 3, 4, 0])}
    monkeypatch.setattr(linear_probe, "load_labelled", lambda *_, split="test", **__: splits[split])
    for train in (None, "painted", "other"):
        assert linear_probe.run("pair", dataset="painted", train=train).train_images == 6


@pytest.mark.parametrize("dataset, train", [("mnist", None), ("mnist", "digits"), ("digits", "mnist")])
def test_data_option_applies_to_the_benchmark_that_needs_it(dataset, train, loading, tmp_path):
    rows = np.arange(60) % 10
    images = np.stack([paint(row % 5)[..., 0] for row in rows])
    np.savez(tmp_path / "mnist.npz", x_test=images, y_test=rows, x_train=images[:40], y_train=rows[:40])
    (tmp_path / "names.txt").write_text("\n".join(CLASS_NAMES["mnist"]))
    options = {"data": str(tmp_path), "class_names": str(tmp_path / "names.txt")}
    result = linear_probe.run("pair", dataset=dataset, train=train, **options)
    counts = {"mnist": (40, 60), "digits": (1437, 360)}
    assert (result.train_images, result.images) == (counts[train or dataset][0], counts[dataset][1])


def test_a_probe_refuses_to_test_on_its_training_data(loading, colour_folders, tmp_path):
    folder = colour_folders("a")
    for name in (f"folder:{folder}", f"folder:{folder.parent}/./a/"):
        with pytest.raises(ValueError, match="share images"):
            linear_probe.run("pair", dataset=f"folder:{folder}", train=name)
    with pytest.raises(ValueError, match="has no training split"):
        linear_probe.run("pair", dataset=f"folder:{folder}")
    shards = write_shards(tmp_path / "shards", 20)
    with pytest.raises(ValueError, match="share images"):
        linear_probe.run("pair", dataset=f"shards:{shards}", train=f"shards:{tmp_path}/shards/*0.tar")
