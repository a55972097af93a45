"""The command `zoo experiment`: runs experiments with one pair, and collects what they found in one report."""

import importlib
import importlib.util
import json
import math
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convnext import closest
from zoo.experiments import EXPERIMENTS
from zoo.experiments.setting import Outcome, Setting
from zoo.models.registry import Loaded, load
from zoo.utils import report
from zoo.utils.files import atomic_write

DEMO_PAIR = Path("demo-output/model.safetensors")
USE = """import zoo

pipeline = zoo.ClipPipeline({model!r})
pipeline.classify(["a picture.png"], ["cat", "dog"])     # probabilities
pipeline.similarity(["a picture.png"], ["a red car"])    # cosines"""


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
    """Runs experiments and writes report.html, metrics.json, a JSON file for each experiment, and their PNGs.

    What is done is left before the next experiment begins. One that fails has its error in the place of its figures.

    Args:
        names: of EXPERIMENTS, in the order they run; "all" for all.
        model: what `zoo.load` takes; the pair that `make demo` trained unless given.
        output: folder, made if it is not there.
        images: a folder of pictures of one's own; with a folder for each class they take the digits' place.
        data: a folder with the original files of CIFAR-10 and MNIST.
        classes: what one's own pictures may show: names, or one string with commas between them.
        smoke: few pictures, few rounds, nothing fetched.
        seed: of what is drawn.

    Returns:
        What metrics.json holds: {"run": facts, experiment: its figures, or {"error": why it failed}}.

    Raises:
        ValueError: an unknown experiment, no pair, a folder that is none, pictures or classes that do not go together;
            ImportError: a library is missing.
    """
    names = chosen(names)
    check_libraries()
    folders = [checked_folder(option, path) for option, path in (("images", images), ("data", data))]
    wanted = split_names(classes)
    model = find_model(model)
    setting = Setting(str(model), load_pair(model), Path(output), *folders, wanted, smoke, seed)
    setting.check_images()
    setting.folder.mkdir(parents=True, exist_ok=True)
    outcomes, seconds = {}, {}
    for name in names:
        start = time.perf_counter()
        outcomes[name] = attempt(name, setting)
        seconds[name] = time.perf_counter() - start
        results = leave(setting, outcomes, seconds)
        what, figure = outcomes[name].headline
        print(f"{name:<16}{seconds[name]:6.1f} s   {figure} {what}", flush=True)
    print(f"report          {setting.folder / 'report.html'}")
    return results


def attempt(name: str, setting: Setting) -> Outcome:
    """What an experiment found, or why it failed, which is said on stderr too."""
    try:
        return importlib.import_module(f"zoo.experiments.{name}").run(setting)
    except Exception as error:  # one that fails must not lose the others
        why = " ".join(str(error).split())
        if not isinstance(error, ValueError | OSError | ImportError):  # which no input should bring about
            why = f"{type(error).__name__}: {why}"
            traceback.print_exc()
    print(f"zoo: {name} failed: {why}", file=sys.stderr)
    return Outcome(name, (f"in {name}", "failed"), {"error": why}, (report.paragraph(f"It failed: {why}"),))


def all_succeeded(results: dict) -> bool:
    """Whether no experiment failed, of what metrics.json holds."""
    return not any("error" in found for found in results.values())


def leave(setting: Setting, outcomes: dict[str, Outcome], seconds: dict[str, float]) -> dict:
    """Writes the files of what is done so far; returns what metrics.json holds."""
    results = plain({"run": facts(setting, seconds), **{name: found.metrics for name, found in outcomes.items()}})
    for name in outcomes:
        write_json(setting.folder / f"{name}.json", {"run": results["run"], **results[name]})
    write_json(setting.folder / "metrics.json", results)
    write_report(setting.folder / "report.html", setting, outcomes, results["run"])
    return results


def chosen(names: str | Sequence[str]) -> list[str]:
    """The experiments asked for, each once; ValueError for unknown ones."""
    names = [names] if isinstance(names, str) else list(names)
    if "all" in names:
        names += EXPERIMENTS
    for name in names:
        if name not in (*EXPERIMENTS, "all"):
            raise ValueError(f"Unknown experiment {name!r}.{closest(name, ('all', *EXPERIMENTS))}")
    return [name for name in dict.fromkeys(names) if name != "all"]


def split_names(classes: str | Sequence[str] | None) -> list[str] | None:
    """The class names given, or None; ValueError for a list of none."""
    names = classes.split(",") if isinstance(classes, str) else classes
    names = names and [name.strip() for name in names if name.strip()]
    if classes is not None and not names:
        raise ValueError(f"classes={classes!r} names no class; write them with commas between: 'cat,dog'")
    return names


def checked_folder(option: str, path: str | Path | None) -> Path | None:
    if path is not None and not Path(path).is_dir():
        raise ValueError(f"{option}={str(path)!r} is not a folder")
    return None if path is None else Path(path)


def load_pair(model: str | Path) -> Loaded:
    loaded = load(model)
    if loaded.tokenizer is None:
        raise ValueError(f"{str(model)!r} is a classifier; a pair of image and text towers is needed")
    return loaded


def find_model(model: str | Path | None) -> str | Path:
    """The pair that was named, or the demo's."""
    if model is None and not DEMO_PAIR.is_file():
        raise ValueError(f"there is no {DEMO_PAIR}: `make demo` trains it; or name a pair with --model NAME|PATH")
    return DEMO_PAIR if model is None else model


def check_libraries() -> None:
    """ImportError that names what to install."""
    missing = [name for name in ("sklearn", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"The experiments need {' and '.join(missing)}: pip install 'convnext-clip-zoo[report]'")


def facts(setting: Setting, seconds: dict[str, float]) -> dict:
    """What a reader needs to repeat the run."""
    import keras

    from zoo.utils.env import available_cores

    backend = keras.backend.backend()
    modules = {name: importlib.import_module(name) for name in ("keras", backend, "numpy")}
    return {
        "model": setting.model,
        "name": setting.loaded.info.name,
        "fingerprint": setting.pipeline.fingerprint,
        "backend": backend,
        "versions": {"python": platform.python_version()} | {name: m.__version__ for name, m in modules.items()},
        "machine": platform.machine(),
        "cores": available_cores(),
        "smoke": setting.smoke,
        "seed": setting.seed,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def plain(value):
    """The value in what JSON has: no arrays, and None for what is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: dict) -> None:
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1, ensure_ascii=False, allow_nan=False)


def write_report(path: Path, setting: Setting, outcomes: dict[str, Outcome], run: dict) -> None:
    tiles = report.tiles({what: figure for what, figure in (outcome.headline for outcome in outcomes.values())})
    sections = [
        report.section(f"{1 + EXPERIMENTS.index(name)}. {outcome.title}", *outcome.blocks)
        for name, outcome in outcomes.items()
    ]
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    table = {
        "command": command_line(setting, list(outcomes)),
        "pair": f"{run['name']}, {run['fingerprint'][:16]}",
        "versions": versions,
        "machine": f"{run['cores']} cores, {run['machine']}, {run['backend']}",
        "time": f"{sum(run['seconds'].values()):.0f} s",
    }
    used = report.section(
        "Use the pair", report.code(USE.format(model=run["model"])), report.table(["", "this run"], list(table.items()))
    )
    count = f"{len(outcomes)} of the nine experiments" if len(outcomes) < len(EXPERIMENTS) else "Nine experiments"
    lead = (
        f"{count} with {run['name']}: what it is made of, what it recognises, what it finds, how its space is laid "
        "out, how fast it is, and how far its word can be taken."
    )
    report.write_page(path, "A pair, examined", tiles, *sections, used, lead=lead)


def command_line(setting: Setting, names: list[str]) -> str:
    options = {"--images": setting.images, "--data": setting.data}
    given = [f"{option} {value}" for option, value in options.items() if value is not None]
    wanted = "all" if names == list(EXPERIMENTS) else " ".join(names)
    smoke = ["--smoke"] if setting.smoke else []
    return " ".join([f"zoo experiment {wanted} --model {setting.model} --output {setting.folder}", *given, *smoke])
