"""What the documents say of the code: tables, file tree, commands, links.

`python tests/test_docs.py` writes the tables of docs/architectures.md anew from the rows in the code.
"""

import itertools
import re
import shlex
import sys
from pathlib import Path

import pytest

import clip
from convnext import TABLES
from zoo import model_info
from zoo.cli import COMMANDS, GROUPS, build_parser

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ROOT / "docs" / "architectures.md"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLE = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NOT_IN_THE_TREE = {"__init__.py"}


def markdown(header, rows):
    """A table; columns whose header ends in ":" align right."""
    rule = "|".join("--:" if cell.endswith(":") else "---" for cell in header)
    lines = [" | ".join(map(str, row)) for row in ([cell.removesuffix(":") for cell in header], *rows)]
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]) + "\n"


def numbers(values):
    return ", ".join(map(str, values))


def work(info):
    """[GFLOPs, of them multiply–adds in G] as the tables print them."""
    return [f"{info.flops / 1e9:.2f}", f"{info.flops / 2e9:.2f}"]


def convnext_table():
    """Both versions side by side, from small to large; a size that one of them lacks has a dash."""
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
    header = ["pair", "image tower", "image:", "D:", "text: width, heads, layers", "parameters:", "GFLOPs:"]
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
    """{name: text} of the tables between anchors."""
    return {match[2]: match[3] for match in TABLE.finditer(path.read_text(encoding="utf-8"))}


def write_tables(path):
    text = path.read_text(encoding="utf-8")
    fresh = TABLE.sub(lambda match: match[1] + WRITTEN.get(match[2], lambda: match[3])() + match[4], text)
    path.write_text(fresh, encoding="utf-8", newline="\n")


@pytest.mark.parametrize("name", WRITTEN)
def test_tables_are_those_of_the_code(name):
    assert tables_of(ARCHITECTURES)[name] == WRITTEN[name](), "write them anew: python tests/test_docs.py"


def test_writing_the_tables_changes_nothing_else(tmp_path):
    copy = tmp_path / "architectures.md"
    text = ARCHITECTURES.read_text(encoding="utf-8")
    copy.write_text(TABLE.sub(r"\1out of date\n\4", text), encoding="utf-8")
    write_tables(copy)
    stem = tables_of(ARCHITECTURES)["stem"]
    assert copy.read_text(encoding="utf-8") == text.replace(stem, "out of date\n")


def test_sums_in_the_text():
    """Arithmetic that the prose works out by hand."""
    text = ARCHITECTURES.read_text(encoding="utf-8")
    tiny = TABLES["convnext"]["tiny"]
    more = 7 * sum(depth * dim for depth, dim in zip(tiny.depths, tiny.dims, strict=True))
    counts = [model_info(name).parameters for name in ("convnextv2_tiny", "convnext_tiny")]
    assert counts[0] - counts[1] == more
    assert f"= {more:,}`" in text
    assert f"{65504 / 56**2:.1f}" in text
    shares = [f"{100 * 49 / (49 + 8 * dim):.1g} % at C = {dim}" for dim in (tiny.dims[0], tiny.dims[-1])]
    assert [share for share in shares if share not in text] == []


def fenced(path, language):
    """The code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def command_lines(program):
    """Every line of the documents' shell blocks, and every `…` in their text, that starts with `program`."""
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        blocks = "\n".join(fenced(path, "sh") + fenced(path, "powershell"))
        lines = [line.partition("#")[0].strip().replace("\\", "/") for line in blocks.splitlines()]  # Windows' too
        spans = re.findall(r"`([^`\n]+)`", text)
        for line in dict.fromkeys(lines + spans):
            words = list(itertools.dropwhile(lambda word: "=" in word, shlex.split(line)))  # variables stand in front
            if len(words) > 1 and words[0].rpartition("/")[2] == program:
                yield words[1:]


def test_commands_are_those_that_zoo_knows():
    shown = set()
    for words in command_lines("zoo"):
        name = " ".join(words[: 1 + (words[0] in GROUPS)])
        shown.add(name)
        if words != name.split():  # the name alone is a mention
            build_parser().parse_args(words)
    assert shown == set(COMMANDS)


def test_targets_are_those_that_make_knows():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    shown = {words[0] for words in command_lines("make")}
    assert {"demo", "test"} <= shown <= targets


def tree():
    """The paths that the README's file tree shows: two spaces deeper is inside, " · " stands between neighbours."""
    (block,) = [block for block in fenced(ROOT / "README.md", "text") if "convnext/" in block]
    paths, folder = set(), ""
    for line in block.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split(" · ")
        inside = line.startswith("  ")
        paths |= {f"{folder}{name}" if inside else name for name in names}
        folder = folder if inside else names[0]
    return paths


def test_file_tree_is_the_tree():
    shown = {path.rstrip("/") for path in tree()}
    assert [path for path in shown if not (ROOT / path).exists()] == []
    modules = [path for package in ("convnext", "clip", "zoo", "examples") for path in (ROOT / package).glob("*.py")]
    there = {path.relative_to(ROOT).as_posix() for path in modules if path.name not in NOT_IN_THE_TREE}
    assert sorted(there - shown) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


if __name__ == "__main__":
    write_tables(ARCHITECTURES)
    sys.exit()
