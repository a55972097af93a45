"""What users are told they can write: every public name, every import in the documents, the README's snippets."""

import ast
import contextlib
import importlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

from convnext import Variant, resolve_stem_stride

pytestmark = [pytest.mark.backend, pytest.mark.once]

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = "<!-- run -->\n"
BLOCK = re.compile(rf"((?:{RUN})?)^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
OURS = ("convnext", "clip", "zoo", "convnext_v1", "convnext_v2")
FORMER = [  # import paths that earlier documents and examples named, beside those of today's
    "zoo.data.read_folder",
    "zoo.demo.load_split",
    "zoo.env.choose_backend",
    "zoo.env.keep_freed_memory",
    "zoo.evaluation.classifier.average",
    "zoo.export.OnnxModel",
    "zoo.preprocess.PreprocessSpec",
    "zoo.search.Index",
    "zoo.search.TextCache",
    "zoo.search.default_cache_path",
    "zoo.training.classify.train_classifier",
    "zoo.training.config.parse_config",
    "zoo.training.config.read_config",
]


@pytest.mark.parametrize("package", OURS)
def test_every_public_name_resolves(package):
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__)) > 0
    assert [name for name in module.__all__ if getattr(module, name, None) is None] == []


@pytest.mark.parametrize("package", ["convnext", "clip", "zoo"])
def test_star_import_and_unknown_names(package):
    names = {}
    exec(f"from {package} import *", names)
    assert set(importlib.import_module(package).__all__) <= set(names)
    with pytest.raises(AttributeError, match="no attribute 'nothing_like_it'"):
        importlib.import_module(package).nothing_like_it  # noqa: B018


def imports(source):
    """Return the names that a program imports from our packages, dotted."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.{name.name}" for node in nodes if node.module.split(".")[0] in OURS for name in node.names}


def test_every_import_of_the_documents_works():
    pages = [README, *(path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md"))]
    programs = [source for page in pages for _, source in BLOCK.findall(page)]
    programs += [path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")]
    named = set().union(*map(imports, programs), FORMER)
    assert len(named) > len(FORMER)
    for path in sorted(named):
        module, _, name = path.rpartition(".")
        assert hasattr(importlib.import_module(module), name), path


def test_every_dotted_name_of_the_documents_exists():
    pages = [*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if "benchmarks" not in path.parts)]
    spans = [span for page in pages for span in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))]
    names = {match[0] for span in spans if (match := re.match(rf"(?:{'|'.join(OURS)})(?:\.[A-Za-z_]\w*)+", span))}
    assert len(names) > 20
    assert [name for name in sorted(names) if not exists(name)] == []


def exists(name):
    """Return whether a dotted name is a module, or an attribute of one."""
    module, _, attribute = name.rpartition(".")
    with contextlib.suppress(ImportError):
        return bool(importlib.import_module(name))
    with contextlib.suppress(ImportError):
        return hasattr(importlib.import_module(module), attribute)
    return False


RUNNABLE = [path for path in sorted((ROOT / "docs" / "how-to").glob("*.md")) if RUN in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.stem)
def test_snippets_of_the_how_to_pages_run(path, tmp_path, monkeypatch):
    marked = [source for mark, source in BLOCK.findall(path.read_text(encoding="utf-8")) if mark]
    monkeypatch.chdir(tmp_path)
    names = {"__name__": path.stem}
    for source in marked:
        exec(compile(source, path.name, "exec"), names)
    if path.stem == "own-tower":
        assert names["info"].parameters == names["model"].count_params()
        assert names["report"].error < 1e-4


def test_snippets_of_the_readme_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    marked = [source for mark, source in BLOCK.findall(README) if mark]
    assert len(marked) == README.count(RUN) >= 10
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for source in marked:
            exec(compile(source, "README.md", "exec"), names)
    assert "28,635,496" in printed.getvalue()  # parameters of ConvNeXtV2-Tiny
    assert [features.shape[1:] for features in names["maps"].outputs] == [
        (56, 56, 96),
        (28, 28, 192),
        (14, 14, 384),
        (7, 7, 768),
    ]
    assert names["model"].output_shape == (None, 3)
    assert names["x"].shape == (224, 224, 3) and names["x"].dtype == np.float32
    assert names["classifier"].output_shape == (None, 2)
    assert len(names["ids"]) == len(names["scores"]) == 3
    assert (tmp_path / "out" / "open_clip_config.json").is_file()
    assert names["report"].cosine > 0.999 and (tmp_path / "image.onnx").is_file()
    tokens = {"images": names["images"], "tokens": names["tokens"]}
    for key, expected in names["pair"].predict(tokens, verbose=0).items():
        np.testing.assert_allclose(names["fast"].predict(tokens, verbose=0)[key], expected, atol=1e-4)


def test_stem_table_of_the_documents():
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- table: stem -->\n(.*?)<!-- end -->", text, re.DOTALL)[1]
    rows = [tuple(map(int, line.strip("|\n").split("|"))) for line in table.splitlines()[2:]]
    four_stages = Variant(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    assert len(rows) >= 5
    for side, stride, last_map in rows:
        assert resolve_stem_stride(four_stages, (side, side, 3)) == stride
        assert -(-side // stride) // 8 == last_map
