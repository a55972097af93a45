"""The documentation agrees with the code: tables, commands, make targets, rooms, links, and the site builds.

`python tests/test_docs.py` rewrites the tables of docs/models.md from the code.
"""

import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_import_directions import ORDER

import clip
from convnext import TABLES
from zoo import model_info
from zoo.cli import COMMANDS, GROUPS, build_parser
from zoo.training.config import ARCHITECTURE, KINDS, ContrastiveConfig, PretrainConfig, options_of

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "docs" / "models.md"
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "benchmarks" not in path.parent.parent.name)
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *PAGES]
README_LINES = 200
TABLE = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def markdown(header, rows):
    """Return a table; columns whose header ends in ":" are right-aligned."""
    rule = "|".join("--:" if cell.endswith(":") else "---" for cell in header)
    lines = [" | ".join(map(str, row)) for row in ([cell.removesuffix(":") for cell in header], *rows)]
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]) + "\n"


def numbers(values):
    return ", ".join(map(str, values))


def work(info):
    """Return [GFLOPs, G multiply–adds] as the tables print them."""
    return [f"{info.flops / 1e9:.2f}", f"{info.flops / 2e9:.2f}"]


def convnext_table():
    """Return both versions side by side, from small to large; a dash where a version lacks the size."""
    rows = {**TABLES["convnextv2"], **TABLES["convnext"]}
    infos = {
        size: [model_info(f"{family}_{size}") for family in ("convnext", "convnextv2") if size in TABLES[family]]
        for size in rows
    }
    lines = []
    for size in sorted(rows, key=lambda size: infos[size][0].parameters):
        counts = {info.family: f"{info.parameters:,}" for info in infos[size]}
        both = [counts.get(family, "–") for family in ("convnext", "convnextv2")]
        lines.append([size, numbers(rows[size].depths), numbers(rows[size].dims), *both, *work(infos[size][0])])
    header = ["size", "depths", "dims", "V1 parameters:", "V2 parameters:", "GFLOPs:", "G multiply–adds:"]
    return markdown(header, lines)


def resnet_table():
    lines = []
    for depth, row in TABLES["resnet"].items():
        info = model_info(f"resnet{depth}")
        lines.append([depth, row.block, numbers(row.depths), numbers(row.dims), f"{info.parameters:,}", *work(info)])
    header = ["size", "block", "depths", "widths inside the blocks", "parameters:", "GFLOPs:", "G multiply–adds:"]
    return markdown(header, lines)


def pairs_table():
    lines = []
    for name, pair in clip.VARIANTS.items():
        info, text = model_info(f"clip/{name}"), pair.text
        sizes = [pair.image_size, pair.embed_dim, f"{text.width}, {text.heads}, {text.layers}"]
        lines.append([name, image_tower(pair.image), *sizes, f"{info.parameters:,}", work(info)[0]])
    header = ["CLIP model", "image tower", "image:", "D:", "text: width, heads, layers", "parameters:", "GFLOPs:"]
    return markdown(header, lines)


def image_tower(image):
    if isinstance(image, clip.ViT):
        stem = ", convolutional stem" if image.stem_dim else ""
        return f"ViT, width {image.width}, {image.layers} layers, patch {image.patch_size}{stem}"
    if isinstance(image, clip.ResNet):
        return f"ResNet, {'-'.join(map(str, image.layers))}, width {image.width}"
    if isinstance(image, clip.MCi):
        return f"MCi, {'-'.join(map(str, image.depths))}, dims {'-'.join(map(str, image.dims))}"
    version = {"convnext": "V1", "convnextv2": "V2"}[image.family]
    return f"ConvNeXt {version} {image.variant}" + (", MLP" if image.projection == "mlp" else "")


WRITTEN = {"convnext": convnext_table, "resnet": resnet_table, "pairs": pairs_table}


def tables_of(path):
    """Return {name: text} of the tables between their marks."""
    return {match[2]: match[3] for match in TABLE.finditer(path.read_text(encoding="utf-8"))}


def write_tables(path):
    text = path.read_text(encoding="utf-8")
    fresh = TABLE.sub(lambda match: match[1] + WRITTEN.get(match[2], lambda: match[3])() + match[4], text)
    path.write_text(fresh, encoding="utf-8", newline="\n")


@pytest.mark.parametrize("name", WRITTEN)
def test_tables_agree_with_the_code(name):
    assert tables_of(MODELS)[name] == WRITTEN[name](), "out of date; run: python tests/test_docs.py"


def test_writing_the_tables_changes_nothing_else(tmp_path):
    copy = tmp_path / "models.md"
    text = MODELS.read_text(encoding="utf-8")
    copy.write_text(TABLE.sub(r"\1out of date\n\4", text), encoding="utf-8")
    write_tables(copy)
    stem = tables_of(MODELS)["stem"]
    assert copy.read_text(encoding="utf-8") == text.replace(stem, "out of date\n")


def test_numbers_computed_in_the_text():
    text = MODELS.read_text(encoding="utf-8")
    tiny = TABLES["convnext"]["tiny"]
    more = 7 * sum(depth * dim for depth, dim in zip(tiny.depths, tiny.dims, strict=True))
    counts = [model_info(name).parameters for name in ("convnextv2_tiny", "convnext_tiny")]
    assert counts[0] - counts[1] == more
    assert f"= {more:,}`" in text
    assert f"{65504 / 56**2:.1f}" in text
    shares = [f"{100 * 49 / (49 + 8 * dim):.1g} % at C = {dim}" for dim in (tiny.dims[0], tiny.dims[-1])]
    assert [share for share in shares if share not in text] == []


def fenced(text, language):
    """Return the code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def command_lines(program):
    """Yield the arguments of every call of `program` in shell blocks and in `code spans`."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        blocks = "\n".join(fenced(text, "sh") + fenced(text, "powershell"))
        lines = [line.partition("#")[0].strip().replace("\\", "/") for line in blocks.splitlines()]  # Windows' too
        spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
        for line in dict.fromkeys(lines + [span for span in spans if program in span]):
            words = list(itertools.dropwhile(lambda word: "=" in word, shlex.split(line)))  # variables stand in front
            if len(words) > 1 and words[0].rpartition("/")[2] == program and "…" not in words:
                yield words[1:]


def test_every_command_parses_and_every_command_is_shown():
    shown, refused = set(), []
    for words in command_lines("zoo"):
        name = " ".join(words[: 1 + (words[0] in GROUPS)])
        shown.add(name)
        if words != name.split():  # the name alone is a mention
            try:
                build_parser().parse_args(words)
            except SystemExit:
                refused.append(" ".join(words))
    assert refused == []
    assert {name for name in shown if not name.startswith("-")} - set(GROUPS) == set(COMMANDS)


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = {words[0] for words in command_lines("make")}
    assert {"demo", "test", "docs"} <= shown <= targets


def test_rooms_are_the_folders_of_zoo_in_their_order():
    blocks = fenced((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), "text")
    (block,) = [block for block in blocks if "zoo/\n" in block]
    shown = re.findall(r"^  (\w+)/", block, re.MULTILINE)
    rooms = {path.parent.name for path in (ROOT / "zoo").glob("*/__init__.py")}
    assert shown == [room for room in dict.fromkeys(name.split(".")[0] for name in ORDER["zoo"]) if room in rooms]
    drawing = (ROOT / "docs" / "assets" / "rooms.svg").read_text(encoding="utf-8")
    assert [room for room in rooms if f'class="name">{room}<' not in drawing] == []


def test_the_page_of_training_options_names_every_option():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = (ROOT / "docs" / "reference" / "training-options.md").read_text(encoding="utf-8")
    text = hooks.on_page_markdown(page)
    assert "generated:" not in text
    flags = [f"--{f.name.replace('_', '-')}" for c in (ContrastiveConfig, PretrainConfig) for f in options_of(c)]
    keys = [f"| `{key}` |" for key in {**KINDS, **ARCHITECTURE}]
    assert [name for name in [*flags, *keys] if name not in text] == []


def test_every_example_is_listed():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    names = {path.name for path in (ROOT / "examples").rglob("*") if path.suffix in (".py", ".ipynb")}
    assert sorted(name for name in names if f"{name}`" not in text) == []


def test_the_citation_names_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def anchors(path):
    """Return the anchors of a page's headings, as GitHub and mkdocs form them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_compiles(path):
    for number, source in enumerate(fenced(path.read_text(encoding="utf-8"), "python")):
        compile(source, f"{path.name}, Python block {number}", "exec")


class Loads(HTMLParser):
    """Collects the addresses that a page loads by itself."""

    def __init__(self, source):
        super().__init__()
        self.addresses = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "link" and attrs.get("rel") not in ("next", "prev", "canonical"):
            self.addresses.append(attrs.get("href"))
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(attrs.get("src"))


def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    loads = {address for page in pages for address in Loads(page.read_text(encoding="utf-8")).addresses if address}
    assert [address for address in loads if re.match(r"(\w+:)?//", address)] == []
    styles = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css")]
    assert not any(re.search(r"url\(['\"]?(https?:)?//|@import", style) for style in styles)


if __name__ == "__main__":
    write_tables(MODELS)
    sys.exit()
