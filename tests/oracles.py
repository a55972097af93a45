"""What the reference implementations answer, on random weights: computed once, shared by every backend's tests.

    python tests/oracles.py build/oracles                    # skips what is up to date
    python tests/oracles.py build/oracles --only 'timm-*'    # --list shows the names
    python tests/oracles.py build/oracles --full             # and those too big for the suite
    python tests/oracles.py build/oracles --apple FOLDER     # and by Apple's own code (oracles_apple.py)
    python tests/oracles.py build/oracles --giants           # and those of 0.6 to 2.5 billion parameters

A case is a folder: `model.safetensors`, the reference's own state dict; `reference.npz`, inputs and outputs, images and
maps as (B, H, W, C); `case.json`, which model of ours it is and how it was made, written last.
`zoo.bench.parity` compares.
The cases are in oracles_classifiers.py, oracles_pairs.py and oracles_mobileclip.py.
"""

import argparse
import fnmatch
import hashlib
import importlib.metadata
import inspect
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import oracle_case
import oracles_apple
import oracles_classifiers
import oracles_giants
import oracles_mobileclip
import oracles_pairs
from helpers import declare_torchvision_operators
from oracle_case import SEED, randomise

from zoo.weights import write_safetensors

LIBRARIES = {  # source of a case → the distribution that computes it
    "timm": "timm",
    "transformers": "transformers",
    "open_clip": "open_clip_torch",
    "torchvision": "torchvision",
    "facebook": "timm",  # whose models stand for the authors' code
    "apple": "timm",  # likewise, with MobileCLIP-S0's text tower reimplemented
    oracles_apple.SOURCE: "timm",  # which Apple's code registers its trunks with
}


def cases(apple=None, giants=False):
    """Every `Case`, small ones first within a source; `apple` is a checkout of Apple's code."""
    yield from oracles_classifiers.classifier_cases()
    yield from oracles_pairs.pair_cases()
    yield from oracles_mobileclip.cases()
    if apple:
        yield from oracles_apple.cases(apple)
    if giants:
        yield from oracles_giants.cases()


# Writing


def write_case(case, folder):
    """Computes a case; `case.json` appears only when the other two files are complete."""
    import torch

    started, folder = time.monotonic(), folder / case.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "case.json").unlink(missing_ok=True)
    model = case.create().eval()
    randomise(model, SEED)
    with torch.no_grad():
        arrays = case.run(model, case)
    state = {key: value.detach().contiguous().numpy() for key, value in (case.state or own_state)(model).items()}
    replace(folder / "model.safetensors", lambda path: write_safetensors(path, state, {"format": "pt"}))
    replace(folder / "reference.npz", lambda path: np.savez(path, **arrays))
    description = {
        "model": case.model,
        "row": case.row,
        "arguments": case.arguments,
        "library": library_of(case.source),
        "tolerance": case.tolerance,
        "key": key_of(case),
    }
    replace(folder / "case.json", lambda path: path.write_text(json.dumps(description, indent=1), encoding="utf-8"))
    extremes = {
        name: f"{np.abs(a).max():.2g}" for name, a in arrays.items() if not any(part in name for part in UNTOLD)
    }
    return time.monotonic() - started, extremes


UNTOLD = ("image", "token", "_block_")  # pieces whose largest values are not printed


def own_state(model):
    return model.state_dict()


def replace(path, write):
    """Lets `write` make the file under another name and gives it its own when it is whole."""
    temporary = path.with_name(f".tmp-{path.name}")
    write(temporary)
    os.replace(temporary, path)


def library_of(source):
    """The library that computed a case, and its version."""
    if source == oracles_apple.SOURCE:
        return f"ml-mobileclip {oracles_apple.version()}"
    return f"{LIBRARIES[source]} {importlib.metadata.version(LIBRARIES[source])}"


def key_of(case):
    """Changes when the files that define the case or a library that takes part do."""
    digest = hashlib.sha256()
    for module in (oracle_case, case.run):
        digest.update(Path(inspect.getfile(module)).read_bytes())
    for name in (LIBRARIES[case.source], "torch", "timm", "numpy"):
        digest.update(f"{name} {importlib.metadata.version(name)}".encode())
    return digest.hexdigest()


def is_current(case, folder):
    try:
        return json.loads((folder / case.name / "case.json").read_text(encoding="utf-8"))["key"] == key_of(case)
    except (OSError, ValueError, KeyError):
        return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="names to compute, e.g. 'timm-*'")
    parser.add_argument("--full", action="store_true", help="also the cases too big for the suite")
    parser.add_argument("--apple", metavar="FOLDER", help="also by Apple's code: a checkout of apple/ml-mobileclip")
    parser.add_argument("--giants", action="store_true", help="also models of up to 10 GB of weights")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args()
    wanted = [case for case in cases(options.apple, options.giants) if options.full or not case.full]
    wanted = [case for case in wanted if fnmatch.fnmatchcase(case.name, options.only)]
    if options.list:
        print("\n".join(case.name for case in wanted))
        return
    todo = [case for case in wanted if not is_current(case, options.folder)]
    print(f"{len(wanted) - len(todo)} of {len(wanted)} oracles are up to date")
    if not todo:
        return
    declare_torchvision_operators()
    for case in todo:
        seconds, extremes = write_case(case, options.folder)
        print(f"{case.name}: {seconds:.1f} s; largest values {extremes}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
