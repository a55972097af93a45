"""The table of other libraries' names: everything it says exists here, and unknown names are answered from it."""

import importlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

import clip
import convnext
import zoo
from convnext import ELSEWHERE, called_here, create_convnext_v1, create_convnext_v2
from zoo import cli
from zoo.cli import build_parser
from zoo.experiments import EXPERIMENTS
from zoo.experiments.command import choose
from zoo.models.names import find

pytestmark = [pytest.mark.backend, pytest.mark.once]
ROWS = [row for rows in ELSEWHERE.values() for row in rows if row.ours]
OPTIONS = {  # keyword arguments of ours in the table, and what takes them
    **dict.fromkeys(("include_top", "dropout_rate", "layer_scale_init_value", "input_shape"), create_convnext_v1),
    **dict.fromkeys(("downsample_strides", "classifier_activation", "num_classes"), create_convnext_v2),
    **{"weights": zoo.create_model, "activation": clip.create_clip, "preprocess": zoo.ClipPipeline},
}
OBJECTS = {"model": clip.CLIP}


def resolve(path):
    """The object that a dotted path in the table names; None if there is none."""
    first, *rest = path.split(".")
    target = OBJECTS.get(first)
    if target is None:
        target = importlib.import_module(first)
    for name in rest:
        try:
            target = getattr(target, name)
        except AttributeError:
            try:
                target = importlib.import_module(f"{target.__name__}.{name}")
            except ImportError:
                return None
    return target


@pytest.mark.parametrize("ours", sorted({row.ours for row in ROWS}))
def test_what_the_table_calls_ours_exists(ours):
    if ours.startswith("zoo "):
        words = [word if word != "FILE" else "file.json" for word in shlex.split(ours)[1:]]
        needed = ["--model", "m", "--train-data", "t"] if words == ["train", "contrastive"] else []
        assert build_parser().parse_args([*words, *needed])
    elif ours.startswith("--"):
        flags = [flag for flags, _ in cli.COMMANDS["train contrastive"].arguments for flag in flags]
        known = [*flags, "--backend", "--traceback"]
        assert [word for word in ours.split() if word.startswith("--") and word not in known] == []
    elif keyword := re.match(r"(\w+)=", ours):
        import inspect

        assert keyword[1] in inspect.signature(OPTIONS[keyword[1]]).parameters
    else:
        path = re.match(r"[\w.]+", ours)[0]
        instance = {"model.image_encoder": "image_encoder", "model.image_encoder.input_shape": "input_shape"}
        assert path in instance or resolve(path) is not None


def test_documents_functions_are_experiments_and_presets():
    from zoo.bench.presets import OPTIMIZATIONS, PRESETS

    theirs = convnext.renamed("zoo experiment")
    assert {*theirs.values()} == {"all", *EXPERIMENTS}
    assert choose(["model_exploration", "mnist_zero_shot"]) == ["exploration", "mnist"]
    presets = convnext.renamed("zoo bench --preset")
    assert {*presets.values()} <= PRESETS.keys() and {*presets.values()} >= {*OPTIMIZATIONS, "optimizations"}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("train contrastive --model m --train-data t --dataset-type csv", "`--train-data` here: the kind of data"),
        ("train contrastive --model m --train-data t --aug-cfg x", "no counterpart: contrastive training crops"),
        ("train contrastive --model m --train-data t --wamup 1", "no option --wamup. Did you mean --warmup"),
        ("benchmark_inference", "`zoo bench --preset towers` here"),
        ("list resnet50 more", "zoo list has no argument 'more'"),
    ],
)
def test_the_command_line_answers_from_the_table(words, answer, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words.split())
    err = capsys.readouterr().err
    assert ended.value.code == cli.BAD_INPUT and err.count("\n") == 1
    assert answer in err


@pytest.mark.parametrize("package", [convnext, clip, zoo])
def test_unknown_attributes_are_answered_from_the_table(package):
    with pytest.raises(AttributeError, match=r"OptimizedClip`? is `zoo\.ClipPipeline` here"):
        _ = package.OptimizedClip
    with pytest.raises(AttributeError, match="has no attribute 'nothing_like_it'$"):
        _ = package.nothing_like_it


def test_unknown_options_are_answered_from_the_table():
    with pytest.raises(TypeError, match="`dropout_rate=0.1` here"):
        zoo.create_model("convnext_tiny", drop_rate=0.1)
    with pytest.raises(TypeError, match="open_clip's `--lr` is `--learning-rate` here"):
        zoo.train("convnext_v2_atto", "t.csv", lr=1e-3)
    assert called_here("load") == called_here("no_such_name") == ""


NAMES = {"ViT-B/32": "ViT-B-32", "ViT-B/16": "ViT-B-16", "ViT-L/14": "ViT-L-14", "ViT-L/14@336px": "ViT-L-14-336"}


@pytest.mark.parametrize("theirs", NAMES)
def test_openais_names_are_taken_everywhere(theirs):
    ours = f"clip/{NAMES[theirs]}"
    assert find(f"{theirs}.openai")[::4] == find(f"clip/{theirs}.openai")[::4] == (ours, "openai")
    assert zoo.list_models(theirs) == [ours]
    assert zoo.model_info(theirs).name == ours
    with pytest.raises(ValueError, match="architecture without weights"):
        zoo.load(theirs)
    assert clip.canonical_name(theirs)[0] == NAMES[theirs]


def test_clip_load_without_weights_or_with_a_wrong_name():
    assert [find(f"{name}.openai").name for name in clip.available_models()] == [
        *(f"clip/RN{size}" for size in ("50", "101", "50x4", "50x16", "50x64")),
        *(f"clip/{name}" for name in NAMES.values()),
    ]
    with pytest.raises(ValueError, match=r"no model 'ViT-B/23'; available are RN50.*ViT-L/14@336px"):
        clip.load("ViT-B/23", device="cpu")


def test_clip_load_finds_its_opener(monkeypatch):
    from clip import openai

    monkeypatch.setattr(openai, "_openers", [])
    monkeypatch.setattr(openai.importlib.metadata, "entry_points", lambda **_: [])
    with pytest.raises(ImportError, match=r"`import zoo` first, or zoo\.load\('ViT-B-32\.openai'\)"):
        clip.load("ViT-B/32")
    entry = importlib.metadata.EntryPoint(openai.OPENER, "zoo.models.openai:load", openai.ENTRY_POINTS)
    monkeypatch.setattr(openai.importlib.metadata, "entry_points", lambda **_: [entry])
    with pytest.raises(ValueError, match="available are"):
        clip.load("nothing")


def test_clip_load_gives_model_and_preprocess(tmp_path):
    pair = clip.create_clip(clip.Pair(8, 32, clip.ViT(16, 1, 8, head_width=8), clip.Text(16, 2, 1)))
    zoo.save(pair, tmp_path / "pair.safetensors")
    model, preprocess = clip.load(str(tmp_path / "pair.safetensors"), device="cpu", jit=False)
    image = preprocess(Image.new("RGB", (50, 40)))
    assert image.shape == (32, 32, 3) and image.dtype == np.float32
    assert model.encode_image(image[None]).shape == model.encode_text(clip.tokenize(["a dog"])).shape == (1, 8)
