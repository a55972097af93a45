"""Prompt data has its published sizes and texts, and an invalid template is refused."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from clip.prompts import CLASS_NAMES, TEMPLATES, check_classes, class_matrix, fill, prompts_for

ROOT = Path(__file__).resolve().parent.parent


def open_clip_templates(name: str) -> list[str]:
    """A tuple of lambdas in open_clip's metadata as format strings, read as source: no torch is imported."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None:
        pytest.skip("open_clip is not installed")
    source = Path(spec.origin).with_name("zero_shot_metadata.py").read_text(encoding="utf-8")
    value = next(
        node.value for node in ast.parse(source).body if isinstance(node, ast.Assign) and node.targets[0].id == name
    )
    return [
        "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in item.body.values)
        for item in value.elts
    ]


@pytest.mark.parametrize(
    "name, count", [("simple", 1), ("digits", 4), ("cifar", 18), ("mnist", 1), ("imagenet", 80), ("imagenet7", 7)]
)
def test_template_sets_have_their_sizes(name, count):
    assert len(set(TEMPLATES[name])) == len(TEMPLATES[name]) == count
    for template in TEMPLATES[name]:
        assert fill(template, "dog").count("dog") == 1


@pytest.mark.parametrize(
    "name, count", [("digits", 10), ("mnist", 10), ("cifar10", 10), ("cifar100", 100), ("fashion_mnist", 10)]
)
def test_class_names_have_their_sizes(name, count):
    assert len(set(CLASS_NAMES[name])) == len(CLASS_NAMES[name]) == count
    assert not any("_" in word for word in CLASS_NAMES[name])  # prompts are written with spaces


def test_no_set_is_left_out():
    assert len(TEMPLATES) == 6 and len(CLASS_NAMES) == 5
    assert set(TEMPLATES["imagenet7"]) <= set(TEMPLATES["imagenet"])


def test_class_names_follow_the_labels():
    assert CLASS_NAMES["cifar10"] == tuple(sorted(CLASS_NAMES["cifar10"]))
    assert CLASS_NAMES["cifar100"] == tuple(sorted(CLASS_NAMES["cifar100"]))
    assert CLASS_NAMES["digits"][7] == "seven" and CLASS_NAMES["mnist"][7] == "7"
    assert CLASS_NAMES["fashion_mnist"][9] == "Ankle boot"


@pytest.mark.parametrize(
    "ours, theirs", [("imagenet", "OPENAI_IMAGENET_TEMPLATES"), ("imagenet7", "SIMPLE_IMAGENET_TEMPLATES")]
)
def test_imagenet_templates_are_open_clips(ours, theirs):
    assert list(TEMPLATES[ours]) == open_clip_templates(theirs)


def test_prompts_are_grouped_by_class():
    assert prompts_for(["cat", "dog"], ["a {}.", "the {}"]) == [["a cat.", "the cat"], ["a dog.", "the dog"]]
    assert prompts_for(["cat"]) == [["a photo of a cat."]]
    assert prompts_for(["{}"], ["a {}"]) == [["a {}"]]  # a name is put in as it is


@pytest.mark.parametrize(
    "template", ["a photo", "a {} and {}", "a {0}", "a {name}", "a {:>9}", "a {!r}", "a {", "{{}}"]
)
def test_a_template_without_exactly_one_placeholder_is_refused(template):
    with pytest.raises(ValueError, match="exactly one {}") as error:
        prompts_for(["cat"], ["the {}", template])
    assert repr(template) in str(error.value)


@pytest.mark.parametrize("names, templates", [("cat", ["a {}"]), (["cat"], "a {}"), ([], ["a {}"]), (["cat"], [])])
def test_strings_and_empty_lists_are_refused(names, templates):
    wrong = "class_names" if names != ["cat"] else "templates"
    with pytest.raises(ValueError, match=f"{wrong} is"):
        prompts_for(names, templates)


def test_prompts_import_nothing_heavy():
    code = "import sys, clip.prompts; assert not {'keras', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


VECTORS = {"a cat": [3.0, 4.0], "the cat": [0.0, 2.0], "a dog": [1.0, 0.0], "the dog": [5.0, 0.0]}


def embed_by_table(texts):
    assert len(texts) == len(set(texts))  # each distinct prompt once
    return np.array([VECTORS[text] for text in texts], np.float32)


def test_class_matrix_is_the_normalised_mean_of_normalised_embeddings():
    matrix = class_matrix(embed_by_table, ["cat", "dog", "cat"], ("a {}", "the {}"))
    cat = np.array([0.3, 0.9]) / np.hypot(0.3, 0.9)  # the mean of (0.6, 0.8) and (0, 1), normalised
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, np.stack([cat, [1.0, 0.0], cat], axis=1), atol=1e-6)


def test_class_matrix_takes_prompts_of_each_class():
    matrix = class_matrix(embed_by_table, {"feline": ["the cat"], "canine": ["a dog", "the dog"]})
    np.testing.assert_allclose(matrix, [[0.0, 1.0], [1.0, 0.0]], atol=1e-6)


@pytest.mark.parametrize("class_names", [{}, {"cat": []}, []])
def test_class_matrix_refuses_classes_without_prompts(class_names):
    with pytest.raises(ValueError, match="at least one"):
        class_matrix(embed_by_table, class_names)


@pytest.mark.parametrize(
    "class_names, message",
    [
        ({"cat": "a photo of a cat"}, "class_names.'cat'. is the string 'a photo of a cat'"),
        ({"dog": ["a dog"], "cat": b"a cat"}, "class_names.'cat'. is b'a cat', a bytes"),
        ({"cat": [["a cat"]]}, "class_names.'cat'.*0. is .'a cat'., a list; it must be a string"),
        ({None: ["a cat"]}, "class_names.0. is None, a NoneType"),
        ({"cat", "dog"}, "class_names is a set, .*no order"),
        (frozenset(["cat"]), "class_names is a set, .*no order"),
        ([["cat", "kitten"], ["dog"]], "class_names.0. is .'cat', 'kitten'., a list"),
        ([b"cat"], "class_names.0. is b'cat', a bytes"),
        (b"cat", "class_names is b'cat', a bytes"),
        (7, "class_names is 7, a int"),
        ("x" * 1000, "class_names is the string 'xxx"),
    ],
)
def test_classes_that_would_be_misread_are_refused(class_names, message):
    with pytest.raises(ValueError, match=message) as error:
        class_matrix(embed_by_table, class_names)
    assert len(str(error.value)) < 500


def test_classes_are_read_once():
    assert check_classes(iter(["cat", 7]), iter(["a {}"])) == (("cat", 7), ("a {}",))
    assert check_classes({"a": 1, "b": 2}.keys())[0] == ("a", "b")  # keys have an order, unlike a set
    assert check_classes({"cat": ["a cat"]}, ()) == ({"cat": ("a cat",)}, ())  # with prompts, templates do not matter
    with pytest.raises(ValueError, match="templates.0. is 7"):
        check_classes(["cat"], [7])
