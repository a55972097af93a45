"""What users are told they can write: every public name, the README's Python, the stem table of the documents."""

import contextlib
import importlib
import io
import re
from pathlib import Path

import pytest

from convnext import Variant, resolve_stem_stride

pytestmark = [pytest.mark.backend, pytest.mark.once]

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RUN = "<!-- run -->\n"
BLOCKS = re.findall(rf"((?:{RUN})?)^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("package", ["convnext", "clip", "zoo", "convnext_v1", "convnext_v2"])
def test_every_public_name_resolves(package):
    module = importlib.import_module(package)
    assert module.__all__
    assert len(module.__all__) == len(set(module.__all__))
    missing = [name for name in module.__all__ if getattr(module, name, None) is None]
    assert not missing
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("package", ["convnext", "clip", "zoo"])
def test_star_import_and_unknown_names(package):
    names = {}
    exec(f"from {package} import *", names)
    assert set(importlib.import_module(package).__all__) <= set(names)
    with pytest.raises(AttributeError, match="no attribute 'nothing_like_it'"):
        importlib.import_module(package).nothing_like_it  # noqa: B018


def test_python_of_the_readme_compiles():
    assert len(BLOCKS) >= 5
    for number, (_, source) in enumerate(BLOCKS):
        compile(source, f"README.md, Python block {number}", "exec")


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    marked = [source for mark, source in BLOCKS if mark]
    assert len(marked) == README.count(RUN)
    names, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed):
        for source in marked:
            exec(compile(source, "README.md", "exec"), names)
    assert "28,635,496" in printed.getvalue()
    assert [map_.shape[1:] for map_ in names["maps"].outputs] == [
        (56, 56, 96),
        (28, 28, 192),
        (14, 14, 384),
        (7, 7, 768),
    ]
    assert names["classifier"].output_shape == (None, 2)
    assert (tmp_path / "squares.keras").is_file()
    assert names["transform"](names["np"].zeros((480, 640, 3), "uint8")).shape == (224, 224, 3)


def test_stem_table_of_the_documents():
    text = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- table: stem -->\n(.*?)<!-- end -->", text, re.DOTALL)[1]
    rows = [tuple(map(int, line.strip("|\n").split("|"))) for line in table.splitlines()[2:]]
    four_stages = Variant(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))
    assert len(rows) >= 5
    for side, stride, last_map in rows:
        assert resolve_stem_stride(four_stages, (side, side, 3)) == stride
        assert -(-side // stride) // 8 == last_map
