"""Imports point downwards: convnext <- clip <- zoo <- examples, and inside a package as ORDER lists it.

All but the last tests read the sources with `ast`; those at the end watch a fresh interpreter.
"""

import ast
import functools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Lowest first: a file imports only what stands before it. A name covers the modules below it,
# unless a longer one stands here too.
ORDER = {
    "convnext": [
        "registration",
        "elsewhere",
        "variants",
        "keras_internals",
        *("kernels.reference", "kernels.shared", "kernels"),
        "layers",
        "adamw",
        "functional",
        "model",
        "resnet",
        "fcmae",
    ],
    "clip": [
        "layers",
        "branches",
        "towers",
        "variants",
        "batches",
        "losses",
        "tokenizer",
        "model",
        "prompts",
        "zero_shot",
        "openai",
    ],
    "zoo": [
        *("utils.env", "utils.text", "utils.files", "utils.strict_json", "utils.database", "utils"),
        *("data.plugins", "data.preprocess"),
        *("data.tar", "data.records", "data.rows", "data.folders", "data.tables", "data.shards"),
        *("data.rand_augment", "data.augment", "data.mix", "data.bad_samples", "data.batches"),
        *("data.digits", "data.benchmarks", "data.sources", "data.datasets", "data"),
        *("weights.published", "weights.download", "weights.layouts", "weights.write", "weights.read"),
        *(
            "weights.fitting",
            "weights.engine",
            "weights.schema",
            "weights.config",
            "weights.native",
        ),
        *("weights.describe", "weights.sources.source", "weights.sources.timm", "weights.sources.open_clip"),
        *("weights.sources", "weights.locate", "weights.load", "weights"),
        *("models.names", "models.info", "models.keras_archive", "models.registry", "models"),
        *("export", "embeddings"),
        *("inference.torch_graph", "inference.forward", "inference.encoder", "inference.classifier", "inference"),
        *("evaluation.metrics", "evaluation.results", "evaluation"),
        *("training", "search"),
        *("serve.limits", "serve.batching", "serve.schema", "serve.openapi", "serve.guard"),
        *("serve.model", "serve.library", "serve.app", "serve.server", "serve"),
        *("bench.cases", "bench.presets", "bench.timing", "bench.machine", "bench.serving"),
        *("bench.bars", "bench.table"),
        *("bench.uses", "bench.peers", "bench.jobs"),
        *("bench.worker", "bench.processes", "bench.harness", "bench"),
        *("experiments.context", "experiments.plots", "experiments"),
        *("demo", "cli", "__main__"),
        *("preprocess", "env"),  # old import paths
    ],
}
MAY_IMPORT = {  # its own package, and the public face of these
    "convnext": set(),
    "clip": {"convnext"},
    "zoo": {"convnext", "clip"},
    "examples": {"convnext", "clip", "zoo"},
    "convnext_v1": {"convnext"},
    "convnext_v2": {"convnext"},
}
OPEN_TO_ALL = "convnext.keras_internals"  # beside the public faces
OURS = {*MAY_IMPORT, "tests"}

SERVES = ("guard", "library", "app", "server")  # imported when a service is created

# What a module may import from elsewhere when it is itself imported; the most specific name counts.
AT_IMPORT = {
    "convnext": {"keras", "numpy"},
    "convnext.elsewhere": set(),
    "convnext.variants": set(),
    "clip": {"keras", "numpy"},
    "clip.towers": set(),
    "clip.towers.branches": {"keras", "numpy"},  # layers, imported when a tower is built
    "clip.variants": set(),
    "clip.openai": set(),
    "clip.prompts": {"numpy"},
    "clip.tokenizer": {"numpy", "tokenizers", "regex", "ftfy"},
    "zoo": {"keras", "numpy", "PIL", "safetensors", "tokenizers", "regex", "ftfy"},
    "zoo.data": {"numpy", "PIL"},
    **{f"zoo.serve.{name}": {"numpy", "PIL", "starlette", "uvicorn", "prometheus_client"} for name in SERVES},
}
NEVER = {"timm", "open_clip", "transformers", "keras_hub", "zeromodels"}  # in the packages, not even in a function
PEERS = "zoo.bench.peers"  # but for this module's functions, which only the process of a benchmark's case calls
FRAMEWORKS = {"keras", "jax", "tensorflow", "torch"}


@dataclass(frozen=True)
class Import:
    """`from origin import ...`, where target is origin, or a module of ours inside it that is named."""

    module: str
    line: int
    origin: str
    target: str
    when: str  # import, call or typing

    @property
    def top(self) -> str:
        return self.target.partition(".")[0]

    def __str__(self) -> str:
        return f"line {self.line} of {self.module} imports {self.target}"


def module_paths() -> dict[str, Path]:
    """Returns {dotted name: file} of everything that MAY_IMPORT speaks of."""
    paths = {}
    for top in MAY_IMPORT:
        for path in [ROOT / f"{top}.py", *sorted((ROOT / top).rglob("*.py"))]:
            if path.exists():
                parts = path.relative_to(ROOT).with_suffix("").parts
                paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


MODULES = module_paths()


def read_imports(module: str) -> list[Import]:
    """Returns the imports of a module, those inside functions and under TYPE_CHECKING too."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = []

    def visit(node: ast.AST, when: str) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.append(Import(module, node.lineno, alias.name, alias.name, when))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                target = inner if inner in MODULES else origin
                found.append(Import(module, node.lineno, origin, target, when))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            when = "call"
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            when = "typing"
        for child in ast.iter_child_nodes(node):
            visit(child, when)

    visit(ast.parse(path.read_text(encoding="utf-8"), str(path)), "import")
    return found


@functools.cache  # not when the module is imported, which other tests do
def every_import() -> list[Import]:
    return [entry for module in MODULES for entry in read_imports(module)]


def most_specific(name: str, table) -> str | None:
    """Returns the longest entry of `table` that is `name` or a package around it."""
    around = [entry for entry in table if name == entry or name.startswith(entry + ".")]
    return max(around, key=len, default=None)


def place(module: str) -> int:
    """Returns a module's index in its package's ORDER; the package itself stands above all its modules."""
    package, _, inner = module.partition(".")
    entry = most_specific(inner, ORDER[package])
    return len(ORDER[package]) if entry is None else ORDER[package].index(entry)


def foreign_imports() -> list[Import]:
    """Returns what the three packages import that is neither ours nor Python's own."""
    known = OURS | sys.stdlib_module_names
    return [entry for entry in every_import() if entry.module.partition(".")[0] in ORDER and entry.top not in known]


def complain(wrong: list[Import]) -> str:
    return "\n" + "\n".join(map(str, wrong))


@pytest.mark.parametrize("package", ORDER)
def test_package_is_there_and_every_module_has_a_place(package):
    modules = [module for module in MODULES if most_specific(module, [package])]
    assert modules, f"no {package}/ in {ROOT}"
    unplaced = [module for module in modules if module != package and place(module) == place(package)]
    assert not unplaced, f"add to ORDER: {unplaced}"


def test_other_packages_are_imported_downwards_and_by_their_public_face():
    wrong = []
    for entry in every_import():
        home = entry.module.partition(".")[0]
        if entry.top in OURS - {home}:
            face = entry.origin in (entry.top, OPEN_TO_ALL) or (home, entry.top) == ("examples", "zoo")
            if not face or entry.top not in MAY_IMPORT[home]:
                wrong.append(entry)
    assert not wrong, complain(wrong)


def test_modules_import_only_what_stands_lower_in_their_package():
    wrong = []
    for entry in every_import():
        package = entry.module.partition(".")[0]
        inside = package in ORDER and entry.top == package and entry.module != package
        if inside and place(entry.target) > place(entry.module):
            wrong.append(entry)
    assert not wrong, complain(wrong)


def test_packages_import_little_when_they_are_imported():
    wrong = []
    for entry in foreign_imports():
        allowed = AT_IMPORT[most_specific(entry.module, AT_IMPORT)]
        if entry.when == "import" and entry.top not in allowed:
            wrong.append(entry)
    assert not wrong, complain(wrong)


def test_convnext_and_clip_import_no_more_when_they_are_called():
    wrong = []
    for entry in foreign_imports():
        allowed = FRAMEWORKS | AT_IMPORT[most_specific(entry.module, AT_IMPORT)]
        if not entry.module.startswith("zoo") and entry.top not in allowed:
            wrong.append(entry)
    assert not wrong, complain(wrong)


def test_packages_never_import_what_they_are_compared_with():
    wrong = [entry for entry in foreign_imports() if entry.top in NEVER and entry.module != PEERS]
    assert not wrong, complain(wrong)


def test_peers_are_imported_by_the_benchmarks_worker_alone():
    """Through its jobs, when it runs; `zoo.bench` itself does not lead there."""
    users = {entry.module for entry in every_import() if entry.target == PEERS}
    assert users == {"zoo.bench.jobs"}
    assert {entry.when for entry in every_import() if entry.target == PEERS} == {"call"}
    assert {entry.module for entry in every_import() if entry.target == "zoo.bench.jobs"} == {"zoo.bench.worker"}
    assert not [entry for entry in every_import() if entry.target == "zoo.bench.worker"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-c", "import zoo"],
        ["-c", "import zoo.data"],
        ["-c", "import convnext, clip; dir(convnext), dir(clip), clip.VARIANTS, convnext.variants"],
        ["-m", "zoo", "list"],
        ["-m", "zoo", "info", "convnextv2_tiny"],
    ],
    ids=" ".join,
)
def test_names_and_tables_load_no_framework(arguments):
    command = [sys.executable, "-X", "importtime", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    times = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    said = [line for line in run.stderr.splitlines() if line not in times]
    assert run.returncode == 0, "\n".join([run.stdout, *said])
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in times}
    assert "encodings" in loaded, "the interpreter did not say what it imported"
    assert not loaded & FRAMEWORKS
