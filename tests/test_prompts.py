"""Prompt data has its published sizes and texts, and a template that cannot be filled is refused by name."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from clip.prompts import CLASS_NAMES, TEMPLATES, fill, prompts_for

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
    "name, count",
    [("simple", 1), ("digits", 4), ("cifar", 18), ("mnist", 1), ("imagenet", 80), ("imagenet7", 7)],
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
    "ours, theirs",
    [("imagenet", "OPENAI_IMAGENET_TEMPLATES"), ("imagenet7", "SIMPLE_IMAGENET_TEMPLATES")],
)
def test_imagenet_templates_are_open_clips(ours, theirs):
    assert list(TEMPLATES[ours]) == open_clip_templates(theirs)


def test_prompts_stand_class_by_class():
    assert prompts_for(["cat", "dog"], ["a {}.", "the {}"]) == [["a cat.", "the cat"], ["a dog.", "the dog"]]
    assert prompts_for(["cat"]) == [["a photo of a cat."]]
    assert prompts_for(["{}"], ["a {}"]) == [["a {}"]]  # a name is put in as it is


@pytest.mark.parametrize(
    "template", ["a photo", "a {} and {}", "a {0}", "a {name}", "a {:>9}", "a {!r}", "a {", "{{}}"]
)
def test_a_template_without_exactly_one_place_is_refused(template):
    with pytest.raises(ValueError, match="exactly one {}") as error:
        prompts_for(["cat"], ["the {}", template])
    assert repr(template) in str(error.value)


@pytest.mark.parametrize("names, templates", [("cat", ["a {}"]), (["cat"], "a {}"), ([], ["a {}"]), (["cat"], [])])
def test_strings_and_empty_lists_are_refused(names, templates):
    wrong = "class_names" if names != ["cat"] else "templates"
    with pytest.raises(ValueError, match=f"{wrong} is"):
        prompts_for(names, templates)


def test_prompts_import_nothing_heavy():
    code = "import sys, clip.prompts; assert not {'keras', 'numpy', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
