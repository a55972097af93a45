"""Our models against the reference implementations, piece by piece.

`tests/oracles.py` runs the references on random weights and writes one folder per case with weights, inputs and
outputs. This module loads each case as a user would and compares; it imports no reference library. Errors are
max |ours − theirs| / max |theirs|.
"""

import fnmatch
import functools
import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.bench.machine import version_of
from zoo.models.registry import create_model
from zoo.utils.env import choose_backend
from zoo.weights import load_weights
from zoo.weights.config import builder_of, row_of


@dataclass(frozen=True)
class Row:
    """One line of the parity table.

    Args:
        case: name of the case's folder.
        library: the reference library and its version.
        backend: Keras' backend and its version.
        output: the piece compared, after the image size if a case has several.
        error: max |ours − theirs| / max |theirs|; NaN if the shapes differ or a value is not finite.
        tolerance: largest allowed error.
    """

    case: str
    library: str
    backend: str
    output: str
    error: float
    tolerance: float

    @property
    def is_within(self):
        return self.error <= self.tolerance


def parity(directory: str | Path, pattern: str = "*") -> list[Row]:
    """Compare every case of a folder written by `tests/oracles.py`.

    Args:
        directory: the folder of cases.
        pattern: glob of case names, e.g. "timm-*".

    Returns:
        A list of `Row`.

    Raises:
        ValueError: no such folder, or no case matches.
    """
    if not Path(directory).is_dir():
        raise ValueError(f"There is no folder {str(directory)!r}. Create it with: python tests/oracles.py {directory}")
    cases = (path.parent for path in Path(directory).glob("*/case.json"))
    found = [case for case in cases if fnmatch.fnmatchcase(case.name, pattern)]
    found.sort(key=lambda case: (case.name.partition("-")[2], case.name))  # by architecture, for create_row's cache
    if not found:
        raise ValueError(f"No case matches {pattern!r} in {directory}. Cases come from: python tests/oracles.py")
    return [row for case in found for row in compare(case)]


def parity_on(directory: str | Path, pattern: str = "*", backend: tuple[str, ...] = ()) -> list[Row]:
    """Run `parity` on one or several backends, several one after the other in processes of their own.

    Args:
        directory, pattern: as in `parity`.
        backend: any of "jax", "tensorflow", "torch"; empty for the environment's choice.

    Raises:
        ValueError: a backend is not installed, or no case matches.
    """
    if len(backend) < 2:
        choose_backend(next(iter(backend), None))
        return parity(directory, pattern)
    return [row for name in backend for row in _rows_of(name, str(directory), pattern)]


def _rows_of(backend, directory, pattern):
    command = [sys.executable, "-m", "zoo", "parity", directory, "--pattern", pattern, "--backend", backend, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ValueError(f"{backend}: {lines[-1].removeprefix('zoo: error: ')}")
    return [Row(**row) for row in json.loads(done.stdout)]


def compare(case_dir: str | Path) -> list[Row]:
    """Return the `Row`s of one case."""
    import keras

    backend = keras.backend.backend()
    where = " ".join(filter(None, (backend, version_of(backend))))
    case_dir = Path(case_dir)
    case = json.loads((case_dir / "case.json").read_text(encoding="utf-8"))
    reference = dict(np.load(case_dir / "reference.npz", allow_pickle=False))
    model = load_case(case_dir, case)
    outputs = run_pair(model, reference) if hasattr(model, "image_encoder") else run_classifier(model, reference)
    return [
        Row(case_dir.name, case["library"], where, name, error(ours, reference[name]), case["tolerance"])
        for name, ours in outputs.items()
    ]


def load_case(case_dir, case):
    """Return our model of a case with the reference's weights."""
    if case["row"] is None:
        return create_model(case["model"], weights=case_dir / "model.safetensors", **case["arguments"])
    model = create_row(case["model"], json.dumps([case["row"], case["arguments"]]))
    load_weights(model, case_dir / "model.safetensors")
    return model


@functools.lru_cache(maxsize=1)
def create_row(family, row_and_arguments):
    """Return a model of a row that is in no table.

    The last one is cached: several libraries have files for the same row, and JAX takes seconds to compile it.
    """
    row, arguments = json.loads(row_and_arguments)
    return builder_of(family)(row_of(family, row), **arguments)


def run_classifier(model, reference):
    """Return {"224x224/stem": array, "224x224/stage_0": array, …} for each image size of the reference."""
    pieces, probe = classifier_probe(model)
    outputs: dict[str, np.ndarray] = {}
    for key in reference:
        size, _, what = key.partition("/")
        if what == "images":
            results = predict(probe, reference[key])
            outputs |= {f"{size}/{name}": result for name, result in zip(pieces, results, strict=True)}
    return outputs


@functools.lru_cache(maxsize=1)
def classifier_probe(model):
    """Return (names, model with these outputs) of a classifier's pieces."""
    import keras

    pieces = _tower_pieces(model)
    if "head_fc" in pieces:
        pieces["logits"] = pieces.pop("head_fc")
    return tuple(pieces), keras.Model(model.input, list(pieces.values()))


def run_pair(model, reference):
    """Return the towers' outputs and inner pieces, logits, loss and d loss / d logit_scale of one batch."""
    from keras import ops

    outputs: dict[str, np.ndarray] = {}
    for side, tower, key in (("image", model.image_encoder, "images"), ("text", model.text_encoder, "tokens")):
        outputs |= _run_tower(side, tower, reference[key], reference)
    pair = predict(model, {key: reference[key] for key in ("images", "tokens")})
    image, text = pair["image_embeddings"], pair["text_embeddings"]
    loss, gradient = _loss_and_gradient(model, image, text)
    return {
        **outputs,
        "image_normalized": image,
        "text_normalized": text,
        "logits": ops.convert_to_numpy(model.logits(image, text)),
        "loss": loss,
        "logit_scale_gradient": gradient,
    }


def _run_tower(side, tower, inputs, reference):
    """Return {"image_stem": array, …, "image_embedding": array} with the inner pieces that the reference has."""
    import keras

    named = {f"{side}_{name}": tensor for name, tensor in _tower_pieces(tower).items()}
    pieces = {name: tensor for name, tensor in named.items() if name in reference}
    pieces[f"{side}_embedding"] = tower.output
    results = predict(keras.Model(tower.input, list(pieces.values())), inputs)
    return dict(zip(pieces, results, strict=True))


PIECES = {  # our layer → the piece that it computes; if a model has several, the last counts
    **dict.fromkeys(("class_embedding", "stem_norm", "maxpool", "avgpool", "ln_pre", "stem_2_act"), "stem"),
    **dict.fromkeys(("head_pool", "head_norm", "ln_post", "ln_final"), "pooled"),
    **{name: name for name in ("token_embedding", "head_fc")},
}
STAGES = ("stages_0_blocks_0_out", "layer1_0_out")  # every model with stages has one of these layers
BLOCK = re.compile(r"transformer_resblocks_(\d+)_(?:add_2|sequence)")  # the last layer of a transformer's block


def _tower_pieces(tower):
    """Return {"stem", "stage_0", …, "token_embedding", "block_0", …, "pooled", "head_fc": tensor}, if present."""
    from convnext import feature_maps

    layers = {layer.name: layer for layer in tower.layers}
    pieces = {piece: layers[name].output for name, piece in PIECES.items() if name in layers}
    if any(name in layers for name in STAGES):
        pieces |= {f"stage_{index}": stage for index, stage in enumerate(feature_maps(tower).outputs)}
    found = {name: BLOCK.fullmatch(name) for name in layers}
    return pieces | {f"block_{match[1]}": layers[name].output for name, match in found.items() if match}


def predict(model, x):
    """Return a model's inference outputs as NumPy arrays; compiled on JAX, without gradients on torch."""
    import keras
    from keras import ops

    if keras.backend.backend() != "tensorflow":
        return model.predict_on_batch(x)
    return keras.tree.map_structure(ops.convert_to_numpy, model(x, training=False))


def _loss_and_gradient(model, image, text):
    """Return (clip_loss, its derivative by logit_scale) as NumPy scalars, by the backend's autodiff."""
    import keras

    from clip import clip_loss

    variable = model.logit_scale.logit_scale

    def loss_of(scale):
        with keras.StatelessScope(state_mapping=[(variable, scale)]):
            return clip_loss(model.logits(image, text))

    differentiate = {"jax": _differentiate_jax, "tensorflow": _differentiate_tensorflow, "torch": _differentiate_torch}
    value, gradient = differentiate[keras.backend.backend()](loss_of, keras.ops.convert_to_numpy(variable.value))
    return keras.ops.convert_to_numpy(value), keras.ops.convert_to_numpy(gradient)


def _differentiate_jax(function, x):
    import jax

    return jax.value_and_grad(function)(x)


def _differentiate_tensorflow(function, x):
    import tensorflow as tf

    x = tf.convert_to_tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = function(x)
    return value, tape.gradient(value, x)


def _differentiate_torch(function, x):
    import torch

    x = torch.tensor(x, requires_grad=True)
    value = function(x)
    return value, torch.autograd.grad(value, x)[0]


def error(ours, theirs):
    """Return max |ours − theirs| / max |theirs| in float64; NaN if the shapes differ."""
    if ours.shape != theirs.shape:
        return float("nan")
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


OUTPUTS = (
    *("image_embedding", "text_embedding", "image_normalized", "text_normalized"),
    *("logits", "loss", "logit_scale_gradient"),
)
INNER = "worst inner piece"


def to_markdown(rows):
    """Return a Markdown table: a row per case, a column per output and one for the worst inner piece, with its name.

    With several image sizes the largest error is shown; errors above the tolerance are bold. The line above the table
    counts the cases within tolerance. With several backends, each has one column for all its outputs.
    """
    backends = list(dict.fromkeys(row.backend for row in rows))
    cases = {name: [row for row in rows if row.case == name] for name in dict.fromkeys(row.case for row in rows)}
    good = sum(all_within(own) for own in cases.values())
    alone = len(backends) == 1
    outputs = {o: (o,) for o in OUTPUTS if any(_piece(row) == o for row in rows)} if alone else {"outputs": OUTPUTS}
    columns = [(backend, title, of) for backend in backends for title, of in ({INNER: ()} | outputs).items()]
    titles = [title if alone else f"{backend}: {title}" for backend, title, _ in columns]
    lines = [f"max |ours − theirs| / max |theirs|, float32, Keras on {', '.join(backends)}:"]
    lines += [f"{good} of {len(cases)} cases within their tolerance", ""]
    lines += [f"| case | reference | {' | '.join(titles)} |"]
    lines += ["|---|---|" + "".join("--:|" if of else "---|" for *_, of in columns)]
    for case, own in cases.items():
        cells = [_cell([row for row in own if row.backend == backend], of) for backend, _, of in columns]
        lines.append(f"| {case} | {own[0].library} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _piece(row):
    return row.output.rpartition("/")[2]


def _cell(rows, of):
    """Return the worst error of the outputs `of`; if `of` is empty, of the inner pieces, with the piece's name."""
    rows = [row for row in rows if (_piece(row) in of if of else _piece(row) not in OUTPUTS)]
    if not rows:
        return ""
    worst = max(rows, key=lambda row: (not row.is_within, math.isnan(row.error), row.error))
    text = f"{worst.error:.1e}" if worst.is_within else f"**{worst.error:.1e}**"
    return text if of else f"{text} {_piece(worst)}"


def all_within(rows):
    """Return whether no error exceeds its tolerance."""
    return all(row.is_within for row in rows)
