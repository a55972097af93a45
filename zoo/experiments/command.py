"""The command `zoo experiment`: runs experiments with one CLIP model and collects the results in one report."""

import importlib
import json
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from convnext import closest, renamed
from zoo.experiments import EXPERIMENTS
from zoo.experiments.context import Context, Outcome
from zoo.models import LoadedPair, load_pair
from zoo.utils import report
from zoo.utils.arrays import to_json_types
from zoo.utils.env import describe_runtime, require_packages
from zoo.utils.files import atomic_write

DEMO_PAIR = Path("demo-output/model.safetensors")
USE = """import zoo

pipeline = zoo.ClipPipeline({model!r})
pipeline.classify(["image.png"], ["cat", "dog"])       # probabilities
pipeline.similarity(["image.png"], ["a red car"])      # cosines"""


def run_experiments(
    names: str | Sequence[str] = ("all",),
    *,
    model: str | Path | None = None,
    output: str | Path = "experiment-output",
    images: str | Path | None = None,
    data: str | Path | None = None,
    classes: str | Sequence[str] | None = None,
    smoke: bool = False,
    seed: int = 0,
) -> dict:
    """Run experiments and write report.html, metrics.json, one JSON file per experiment, and their PNGs.

    All files are updated after every experiment. One that fails is reported with its error in place of its metrics.

    Args:
        names: names in `EXPERIMENTS`, run in this order; "all" for all.
        model: name or path for `zoo.load`; by default the pair trained by `zoo demo`.
        output: folder, created if missing.
        images: folder of your own images; with one folder per class they replace the digits.
        data: folder with the original files of CIFAR-10 and MNIST.
        classes: possible classes of your images: names, or one comma-separated string.
        smoke: few images, few rounds, no download.
        seed: random seed.

    Returns:
        The contents of metrics.json: {"run": facts, experiment: its metrics, or {"error": reason}}.

    Raises:
        ValueError: an unknown experiment, no pair, a missing folder, or images that do not match the classes.
        ImportError: a package of the extra `report` is missing.
    """
    names = choose(names)
    require_packages("zoo experiment", ("sklearn", "matplotlib"), extras="report")
    image_folder, data_folder = _check_folder("images", images), _check_folder("data", data)
    class_names = _split_names(classes)
    model = find_model(model)
    context = Context(str(model), _load(model), Path(output), image_folder, data_folder, class_names, smoke, seed)
    context.check_images()
    context.folder.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    seconds: dict[str, float] = {}
    results: dict = {}
    for name in names:
        start = time.perf_counter()
        outcomes[name] = attempt(name, context)
        seconds[name] = time.perf_counter() - start
        results = _write_results(context, outcomes, seconds)
        label, value = outcomes[name].headline
        print(f"{name:<16}{seconds[name]:6.1f} s   {value} {label}", flush=True)
    print(f"report          {context.folder / 'report.html'}")
    return results


def attempt(name: str, context: Context) -> Outcome:
    """Run an experiment; if it fails, print why on stderr and return that as its outcome."""
    try:
        return importlib.import_module(f"zoo.experiments.{name}").run(context)
    except Exception as error:  # the other experiments still run
        reason = " ".join(str(error).split())
        if not isinstance(error, ValueError | OSError | ImportError):  # a bug, not bad input
            reason = f"{type(error).__name__}: {reason}"
            traceback.print_exc()
    print(f"zoo: {name} failed: {reason}", file=sys.stderr)
    return Outcome(name, (f"({name})", "failed"), {"error": reason}, (report.paragraph(f"Failed: {reason}"),))


def all_succeeded(results: dict) -> bool:
    """Return whether no experiment failed."""
    return not any("error" in metrics for metrics in results.values())


def _write_results(context: Context, outcomes: dict[str, Outcome], seconds: dict[str, float]) -> dict:
    """Write the files of the experiments so far; return the contents of metrics.json."""
    run = _describe_run(context, seconds)
    results = to_json_types({"run": run, **{name: outcome.metrics for name, outcome in outcomes.items()}})
    for name in outcomes:
        _write_json(context.folder / f"{name}.json", {"run": results["run"], **results[name]})
    _write_json(context.folder / "metrics.json", results)
    write_report(context.folder / "report.html", context, outcomes, results["run"])
    return results


def choose(names: str | Sequence[str]) -> list[str]:
    """Return the experiments to run, each once; ValueError for an unknown name."""
    theirs = renamed("zoo experiment")  # model_exploration → exploration
    names = [theirs.get(name, name) for name in ([names] if isinstance(names, str) else names)]
    if "all" in names:
        names += EXPERIMENTS
    for name in names:
        if name not in (*EXPERIMENTS, "all"):
            raise ValueError(f"Unknown experiment {name!r}.{closest(name, ('all', *EXPERIMENTS))}")
    return [name for name in dict.fromkeys(names) if name != "all"]


def _split_names(classes: str | Sequence[str] | None) -> list[str] | None:
    """Return the class names, or None if none were given; ValueError for an empty list."""
    if classes is None:
        return None
    names = classes.split(",") if isinstance(classes, str) else classes
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ValueError(f"classes={classes!r} has no class name; give a comma-separated list: 'cat,dog'")
    return names


def _check_folder(option: str, path: str | Path | None) -> Path | None:
    if path is not None and not Path(path).is_dir():
        raise ValueError(f"{option}={str(path)!r} is not a folder")
    return None if path is None else Path(path)


def find_model(model: str | Path | None) -> str | Path:
    """Return the given CLIP model, or the demo's."""
    if model is None and not DEMO_PAIR.is_file():
        raise ValueError(f"{DEMO_PAIR} does not exist; run `zoo demo` first, or pass --model NAME|PATH")
    return DEMO_PAIR if model is None else model


def _load(model: str | Path) -> LoadedPair:
    """Return the pair; if it has no weights or they cannot be downloaded, the error also names the demo's pair."""
    try:
        return load_pair(model)
    except (ConnectionError, ValueError) as error:
        if Path(model).exists():
            raise
        demo = "leave out --model" if DEMO_PAIR.is_file() else "run `zoo demo` and leave out --model"
        raise type(error)(f"{error} To run the experiments on the demo's pair instead, {demo}.") from error


def _describe_run(context: Context, seconds: dict[str, float]) -> dict:
    """Return what is needed to repeat the run."""
    return {
        "model": context.model,
        "name": context.name,
        "fingerprint": context.pipeline.fingerprint,
        **describe_runtime(),
        "smoke": context.smoke,
        "seed": context.seed,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def _write_json(path: Path, value: dict) -> None:
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)


def write_report(path: Path, context: Context, outcomes: dict[str, Outcome], run: dict) -> None:
    tiles = report.tiles({label: value for label, value in (outcome.headline for outcome in outcomes.values())})
    sections = [
        report.section(f"{1 + EXPERIMENTS.index(name)}. {outcome.title}", *outcome.blocks)
        for name, outcome in outcomes.items()
    ]
    facts = {
        "command": _command_line(context, list(outcomes)),
        "model": f"{run['name']}, fingerprint {run['fingerprint'][:16]}",
        "versions": ", ".join(f"{name} {number}" for name, number in run["versions"].items()),
        "machine": f"{run['cores']} cores, {run['machine']}, {run['backend']}",
        "time": f"{sum(run['seconds'].values()):.0f} s",
    }
    usage = report.section(
        "Use the model",
        report.code(USE.format(model=run["model"])),
        report.table(["", "this run"], list(facts.items())),
    )
    count = f"{len(outcomes)} of the nine experiments" if len(outcomes) < len(EXPERIMENTS) else "Nine experiments"
    lead = (
        f"{count} with {run['name']}: size, zero-shot accuracy, retrieval, the embedding space, speed, calibration and "
        "prompts."
    )
    report.write_page(path, "Experiments with a CLIP model", tiles, *sections, usage, lead=lead)


def _command_line(context: Context, names: list[str]) -> str:
    """Return the command that repeats the run."""
    options = {"--images": context.images, "--data": context.data}
    given = [f"{option} {value}" for option, value in options.items() if value is not None]
    words = "all" if names == list(EXPERIMENTS) else " ".join(names)
    smoke = ["--smoke"] if context.smoke else []
    return " ".join([f"zoo experiment {words} --model {context.model} --output {context.folder}", *given, *smoke])
