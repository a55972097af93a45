"""The experiments with a pair of NumPy functions that classifies digits, so that no backend is needed."""

import dataclasses
import html
import json
import re

import numpy as np
import pytest
from data_writers import encode, write_class_folders

from clip import CLASS_NAMES
from zoo.data.digits import load_split
from zoo.data.preprocess import PreprocessSpec
from zoo.experiments import (
    EXPERIMENTS,
    cifar10,
    classification,
    command,
    context,
    embedding_space,
    mnist,
    prompts,
    retrieval,
    temperature,
)
from zoo.experiments.context import Context
from zoo.experiments.published import PUBLISHED
from zoo.inference.encoder import Encoder
from zoo.inference.pipeline import ClipPipeline
from zoo.utils import report
from zoo.weights.published import find_weights

WORDS, NUMERALS = CLASS_NAMES["digits"], CLASS_NAMES["mnist"]
SPEC = PreprocessSpec(image_size=16, mean=(0.0,) * 3, std=(1.0,) * 3)
OTHERS = 6  # dimensions for the wording of a prompt
DIM = 10 + OTHERS


class NumpyPipeline(ClipPipeline):
    """A pipeline around an `Encoder`."""

    def __init__(self, encoder):
        self.encoder, self.cache, self.fingerprint = encoder, None, "0" * 64
        self._classifiers = {}


def tokenizer(texts):
    """int32 (N, 2): the digit a text names, 10 for none, and the rest of its wording as one number."""
    rows = []
    for text in texts:
        named = [i % 10 for i, name in enumerate((*WORDS, *NUMERALS)) if re.search(rf"\b{name}\b", text)]
        rows.append([named[0] if named else 10, sum(map(ord, re.sub(r"\d", "", text))) % OTHERS])
    return np.array(rows, np.int32)


def read_text(tokens):
    """Mostly the digit and a little of the wording: (B, 2) → (B, 16)."""
    return np.concatenate(
        [np.eye(11)[tokens[:, 0]][:, :10], (0.6 + 0.2 * tokens[:, 1:]) * np.eye(OTHERS)[tokens[:, 1]]], axis=1
    )


@pytest.fixture(scope="session")
def pipeline():
    """Images by least squares on the training images, texts by the number in them."""
    train = load_split()[0]
    pixels = np.stack([SPEC.eval_transform()(image)[..., 0] for image in train.images]).reshape(len(train), -1)
    weights = np.linalg.lstsq(pixels, np.eye(10)[train.labels], rcond=0.01)[0]

    def see(images):
        scores = images[..., 0].reshape(len(images), -1) @ weights
        return np.concatenate([scores, np.full((len(images), OTHERS), 0.1)], axis=1)

    return NumpyPipeline(Encoder(see, read_text, SPEC, DIM, scale=5.0, tokenizer=tokenizer, name="least squares"))


@pytest.fixture
def run_context(pipeline, tmp_path):
    made = Context("pair", pair=None, folder=tmp_path)
    made.pipeline = pipeline
    return made


@pytest.fixture
def undrawn(monkeypatch):
    """Replace every plot by one white pixel: drawing takes seconds, and these tests are about metrics."""
    pixel = encode(np.full((1, 1, 3), 255, np.uint8))
    for module in (cifar10, classification, embedding_space, mnist, prompts, retrieval, temperature):
        for name in vars(module):
            if name.startswith(("plot_", "draw_")):
                monkeypatch.setattr(module, name, lambda path, *_, **__: path.write_bytes(pixel))


def save_mnist(folder, count=40):
    folder.mkdir()
    part = load_split()[1]
    images = part.images[:count, 2:30, 2:30, 0]
    np.savez(folder / "mnist.npz", x_test=images, y_test=part.labels[:count])


def test_digits_and_photographs_are_classified_with_probabilities(run_context, undrawn):
    digits, photographs = classification.run(run_context).metrics["groups"]
    assert [row["truth"] for row in digits["pictures"]] == list(WORDS)
    assert digits["accuracy"] >= 0.8
    for row in digits["pictures"]:
        shares = list(row["guesses"].values())
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-9
    assert {"flower.jpg", "china.jpg"} <= {row["picture"] for row in photographs["pictures"]}
    assert photographs["accuracy"] is not None and not photographs["left_out"]


def test_missing_data_is_reported_with_where_to_get_it(run_context, undrawn, tmp_path):
    run_context.data = tmp_path
    for module, file in ((cifar10, "cifar-10-python.tar.gz from https://www.cs"), (mnist, "mnist.npz from https://")):
        outcome = module.run(run_context)
        assert file in outcome.metrics["note"] and "--data" in outcome.metrics["note"]
        assert outcome.metrics["data"] == "digits" and outcome.metrics["note"] in outcome.blocks[0]
    run_context.data, run_context.smoke, run_context._embedded = None, True, {}
    assert "A smoke run skips MNIST" in mnist.run(run_context).metrics["note"]


def test_data_files_are_read(run_context, undrawn, tmp_path, rng):
    run_context.data = tmp_path / "data"
    save_mnist(run_context.data)
    images = rng.integers(0, 256, (30, 32, 32, 3), np.uint8)
    np.savez(run_context.data / "cifar10.npz", x_test=images, y_test=np.arange(30) % 10)
    found = cifar10.run(run_context).metrics
    assert (found["data"], found["note"], found["images"], found["classes"][6]) == ("cifar10", "", 30, "frog")
    assert np.sum(found["confusion"]) == 30 and found["accuracy"] == pytest.approx(np.trace(found["confusion"]) / 30)
    found = mnist.run(run_context).metrics
    assert (found["data"], found["note"]) == ("mnist", "")
    assert {row["images"] for row in found["strategies"].values()} == {40}


@pytest.mark.parametrize("place", ["", "MNIST/raw", "cifar-10-batches-py"])
def test_files_are_found_in_the_usual_layouts(place, tmp_path):
    name, file = ("cifar10", "test_batch") if "cifar" in place else ("mnist", "t10k-images-idx3-ubyte.gz")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    assert context.find_files(tmp_path, name) is None
    (tmp_path / place / file).write_bytes(b"")
    assert context.find_files(tmp_path, name) == tmp_path / place


def test_published_accuracies_are_shown_for_their_weights(run_context, undrawn, tmp_path):
    assert [
        name for name in PUBLISHED if find_weights(f"clip/{name.partition('.')[0]}", name.partition(".")[2]) is None
    ] == []
    run_context.model, run_context.data = "clip/ViT-B-32.openai", tmp_path / "data"
    save_mnist(run_context.data)
    assert mnist.run(run_context).metrics["published"] == pytest.approx(0.4839)
    assert "open_clip publishes 48.4 %" in html.unescape(mnist.run(run_context).blocks[0]).replace("\xa0", " ")
    assert cifar10.run(run_context).metrics["published"] is None  # the digits replace it


def test_shuffled_labels_give_chance_accuracy(run_context, undrawn):
    run_context.smoke = True
    found = cifar10.run(run_context).metrics
    assert found["accuracy"] >= 0.8 and found["shuffled_labels"] == pytest.approx(0.1, abs=0.02)


def test_ways_to_name_a_digit_are_ranked(run_context, undrawn):
    run_context.smoke = True
    found = mnist.run(run_context).metrics
    assert sorted(found["ranking"]) == sorted([*mnist.STRATEGIES, mnist.BOTH])
    accuracies = [found["strategies"][name]["accuracy"] for name in found["ranking"]]
    assert accuracies == sorted(accuracies, reverse=True) and accuracies[0] >= 0.8
    for row in found["strategies"].values():
        low, high = row["interval"]
        assert low < row["accuracy"] < high


def test_prompts_find_images(run_context, undrawn):
    outcome = retrieval.run(run_context)
    found = outcome.metrics
    assert (found["texts"], found["images"]) == (80, 360)
    assert found["text_to_image"]["precision_at_10"] >= retrieval.DEMO_PRECISION
    assert outcome.headline[0] == "of the first 10 images for a prompt are correct (expected of the demo: 97.0 %)"
    assert set(found["text_to_image_by_spelling"]) == {"words", "numerals"}
    assert found["image_to_text"]["queries"] == 360


def test_a_random_pair_retrieves_at_chance_level(run_context, undrawn, pipeline, rng):
    blind = lambda images: rng.standard_normal((len(images), 16))  # noqa: E731
    run_context.pipeline = NumpyPipeline(Encoder(blind, read_text, SPEC, DIM, scale=5.0, tokenizer=tokenizer))
    assert retrieval.run(run_context).metrics["text_to_image"]["precision_at_10"] == pytest.approx(0.1, abs=0.06)


def test_classes_are_separated_in_the_embedding_space(run_context, undrawn):
    found = embedding_space.run(run_context).metrics
    assert found["image_image"]["within"] > found["image_image"]["between"] + 0.3
    assert found["image_text"]["own_class"] > found["image_text"]["other_classes"] + 0.3
    assert found["concepts"] == [*WORDS, *NUMERALS]
    similarity = np.array(found["concept_similarity"])
    assert similarity.shape == (20, 20) and (similarity[:10, 10:].argmax(axis=1) == np.arange(10)).all()
    assert 0 < found["modality_gap"] < 2 and len(found["class_similarity"]) == 10
    assert all(0 < share < 1 for shares in found["variance"].values() for share in shares)


def test_the_temperature_is_fitted_on_one_half_and_evaluated_on_the_other(run_context, undrawn):
    found = temperature.run(run_context).metrics
    assert found["fitted"]["error"] < found["learned"]["error"] and found["fitted"]["loss"] < found["learned"]["loss"]
    assert found["learned"]["factor"] == 5.0 and found["fitted"]["fitted_on"] == found["fitted"]["judged_on"] == 180
    one, other = context.halves(np.zeros(7), seed=0)
    assert sorted([*one, *other]) == list(range(7)) and len(one) == 3
    confidences = [row["confidence"] for row in found["distributions"].values()]
    entropies = [row["entropy"] for row in found["distributions"].values()]
    assert confidences == sorted(confidences, reverse=True) and entropies == sorted(entropies)  # low temperatures first


def test_a_pair_with_a_bias_is_calibrated_by_its_sigmoid(run_context, undrawn, pipeline):
    biased = dataclasses.replace(pipeline.encoder, scale=10.0, bias=-5.0, activation="sigmoid")
    run_context.pipeline = NumpyPipeline(biased)
    outcome = temperature.run(run_context)
    found = outcome.metrics
    assert (found["activation"], found["bias"]) == ("sigmoid", -5.0)
    classifier = run_context.pipeline.classifier(run_context.main.names, run_context.main.data.templates)
    whole = classifier.probabilities(run_context.main.vectors).max(axis=1).mean()
    assert found["distributions"]["1"]["confidence"] == pytest.approx(whole, rel=1e-5)
    assert found["fitted"]["loss"] < found["learned"]["loss"]
    assert "plus the bias -5.00, and probabilities their sigmoid" in html.unescape(outcome.blocks[0])
    run_context.smoke = True
    soft = Context("pair", None, run_context.folder, smoke=True)
    soft.pipeline = pipeline
    losses = [prompts.run(made).metrics["ranking"][0]["loss"] for made in (run_context, soft)]
    assert losses[0] != losses[1]


def test_the_prompt_ranking_is_reproducible(run_context, undrawn, pipeline, tmp_path):
    first = prompts.run(run_context).metrics
    again = Context("pair", None, tmp_path)
    again.pipeline = NumpyPipeline(pipeline.encoder)
    assert prompts.run(again).metrics == first
    rows = first["ranking"]
    assert [row["accuracy"] for row in rows] == sorted((row["accuracy"] for row in rows), reverse=True)
    assert len({row["accuracy"] for row in rows}) > 3, "the prompts should differ in accuracy"
    assert {row["kind"] for row in rows} == set(first["kinds"]) == {"simple", "detailed", "contextual", "ensemble"}
    assert sum(row["best_in_resamples"] for row in rows) == pytest.approx(1)
    other = Context("pair", None, tmp_path, seed=1)
    other.pipeline = pipeline
    changed = prompts.run(other).metrics
    assert [row["prompt"] for row in changed["ranking"]] == [row["prompt"] for row in rows]
    drawn = [{row["prompt"]: row["best_in_resamples"] for row in found["ranking"]} for found in (first, changed)]
    assert drawn[0] != drawn[1] and first["agreement_of_halves"] > 0.5


def test_own_images_replace_the_digits(run_context, undrawn, tmp_path):
    run_context.images, run_context.smoke, run_context.class_names = tmp_path / "own", True, WORDS
    write_class_folders(run_context.images, 60)
    (run_context.images / "0_zero" / "bad.png").write_bytes(b"not an image")
    found = prompts.run(run_context).metrics
    assert found["data"].startswith("folder:") and found["images"] == 60
    assert any(
        row["prompt"] == "a photo of a {}." for row in found["ranking"]
    )  # templates for photographs, not for digits
    outcome = retrieval.run(run_context)
    assert list(outcome.metrics["text_to_image_by_spelling"]) == ["names"] and "demo" not in outcome.headline[0]
    (group,) = classification.run(run_context).metrics["groups"]
    assert list(group["left_out"]) == ["0_zero/bad.png"] and len(group["pictures"]) == 60
    assert group["accuracy"] >= 0.7 and group["pictures"][0]["truth"] == "zero"


def test_images_in_one_folder_are_classified_among_the_given_classes(run_context, undrawn, tmp_path):
    run_context.images = tmp_path / "flat"
    write_class_folders(tmp_path / "sorted", 12)
    run_context.images.mkdir()
    for path in sorted((tmp_path / "sorted").glob("*/*.png")):
        path.rename(run_context.images / path.name)
    (group,) = classification.run(run_context).metrics["groups"]
    assert group["classes"] == list(classification.EVERYDAY_NAMES) and group["accuracy"] is None
    run_context.class_names = list(WORDS)
    (group,) = classification.run(run_context).metrics["groups"]
    assert group["classes"] == list(WORDS) and len(group["pictures"]) == 12
    assert run_context.main.data.name == "digits"


@pytest.fixture
def own(run_context, tmp_path):
    """Write the user's images: one folder per class, with that many of its digits."""

    def make(*counts):
        for label, count in enumerate(counts):
            folder = tmp_path / "own" / WORDS[label]
            folder.mkdir(parents=True)
            part = load_split()[1]
            for i in range(count):
                (folder / f"{i}.png").write_bytes(encode(part.images[part.labels == label][i]))
        run_context.images = tmp_path / "own"

    return make


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("counts", [(1,), (2, 1), *(pytest.param(n, marks=pytest.mark.slow) for n in ((3,), (1, 1)))])
def test_few_own_images(counts, run_context, own, monkeypatch):
    monkeypatch.setattr(report, "DPI", 40)
    own(*counts)
    apart = embedding_space.run(run_context)
    for figure, there in (("within", max(counts) > 1), ("between", len(counts) > 1), ("nearest_same", sum(counts) > 1)):
        assert np.isfinite(apart.metrics["image_image"][figure]) == there, figure
    assert "nan" not in "".join([*apart.headline, *map(text_of, apart.blocks)])
    assert prompts.run(run_context).metrics["images"] == retrieval.run(run_context).metrics["images"] == sum(counts)
    assert len(classification.run(run_context).metrics["groups"][0]["pictures"]) == sum(counts)
    if len(counts) > 1:
        assert temperature.run(run_context).metrics["fitted"]["judged_on"] == sum(counts) - sum(counts) // 2
        return
    with pytest.raises(ValueError, match="one class, 'zero'; fitting a temperature needs at least two"):
        temperature.run(run_context)


def text_of(block):
    """A block of a report without its plots."""
    return re.sub(r'src="[^"]*"', "", block)


@pytest.mark.filterwarnings("error")
def test_one_readable_image_and_two_classes(run_context, own, tmp_path):
    own(1, 1)
    (tmp_path / "own/one/0.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match="1 image cannot be split"):
        temperature.run(run_context)
    assert prompts.run(run_context).metrics["agreement_of_halves"] is None


def test_unreadable_images_are_the_reason(run_context, own, tmp_path):
    own(2, 1)
    for path in tmp_path.glob("own/*/*.png"):
        path.write_bytes(b"not an image")
    for module in (classification, embedding_space, prompts, retrieval, temperature):
        with pytest.raises(
            ValueError, match="none of the 3 images can be read; the first, 'one/0.png': .*not an image"
        ):
            module.run(run_context)


# The command.


@pytest.mark.parametrize(
    ("names", "expected"),
    [("all", list(EXPERIMENTS)), (["prompts", "mnist", "prompts"], ["prompts", "mnist"]), (["mnist"], ["mnist"])],
)
def test_experiments_are_chosen_by_name(names, expected):
    assert command.choose(names) == expected


def test_bad_input_fails_before_anything_is_written(own, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="Unknown experiment 'promts'. Did you mean 'prompts'"):
        command.run_experiments(["promts"])
    with pytest.raises(ValueError, match="demo-output/model.safetensors does not exist; run `zoo demo` first"):
        command.run_experiments(["prompts"])
    with pytest.raises(ValueError, match="images='nowhere' is not a folder"):
        command.run_experiments(["prompts"], model="x", images="nowhere")
    with pytest.raises(ValueError, match="classes=',' has no class name"):
        command.run_experiments(["prompts"], model="x", classes=",")
    monkeypatch.setattr(command, "load_pair", lambda _: None)
    own(1, 1)
    for images, message in (("own", "no class name for its folder 'one'"), ("empty", "holds no images")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=message):
            command.run_experiments(["prompts"], model="x", images=images, classes="zero,onne")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "own"]


def test_json_has_only_json_types():
    mixed = {1: np.float32(0.5), "a": [np.nan, np.array([1, 2])], "b": (np.int64(3), None, "x")}
    assert (
        json.dumps(command.to_json_types(mixed), allow_nan=False)
        == '{"1": 0.5, "a": [null, [1, 2]], "b": [3, null, "x"]}'
    )


@pytest.mark.parametrize("trained", [True, False])
def test_a_pair_that_cannot_be_had_names_the_demos(monkeypatch, tmp_path, trained):
    monkeypatch.chdir(tmp_path)
    if trained:
        command.DEMO_PAIR.parent.mkdir()
        command.DEMO_PAIR.write_bytes(b"")
    hint = "on the demo's pair instead, " + ("leave out --model" if trained else "run `zoo demo` and leave out --model")
    with pytest.raises(ValueError, match=f"Published weights: openai.*{hint}"):
        command.run_experiments("exploration", model="clip/ViT-B-32", output=tmp_path / "out")

    def fail(_):
        raise ConnectionError("model.safetensors is not in the cache.")

    monkeypatch.setattr(command, "load_pair", fail)
    with pytest.raises(ConnectionError, match=f"is not in the cache. To run the experiments {hint}"):
        command.run_experiments("exploration", model="clip/ViT-B-32.openai", output=tmp_path / "out")
