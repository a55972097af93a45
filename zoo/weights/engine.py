"""Rule tables applied to a model, for loading and for export.

A `Format` is a two-column table: a library's module path and our layer's name, for each part of a model (image tower or
classifier, text tower, logit scale). The engine iterates over the model's own layers, so no architecture is configured
here. Loading is all or nothing: every variable is set exactly once, every key of the file is used exactly once or
reported with the reason why not, and nothing is assigned until everything fits.
"""

import functools
import math
import re
from collections import ChainMap, Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import convnext
from zoo.utils.text import shown
from zoo.weights.fitting import fit_tensors
from zoo.weights.layouts import Layout, torch_tensors
from zoo.weights.read import shapes_of

_LOGIT_BIAS = "logit_scale/logit_bias"
_LISTED = 20  # names printed of a long list in an error


@dataclass(frozen=True)
class Format:
    """Names of a library's tensors.

    Args:
        name: for reports and errors.
        signature: key → number of axes; a file with all of these keys has this format.
        parts: "image", "text", "pair", "decoder" → rules. A rule is (module path, our layer name[, tensors]). `{s}` is
            a number, the same in both columns, `{2s+1}` a linear function of it, `{*}` any name. The third column lists
            the layer's tensors where they differ from `layouts.TENSORS`.
        ignored: (key pattern, reason) of keys that no variable needs.
        refused: (key pattern, module) of modules that no model of this package has.
        tensors: layer → its `Tensor` entries.
        remarks: model → lines for the report: where the library's code differs from this model.
    """

    name: str
    signature: dict[str, int]
    parts: dict[str, tuple]
    ignored: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    tensors: Callable = torch_tensors
    remarks: Callable = lambda _: ()


def joined(*paths):
    """Rules of layers that are named like their modules, with "_" for "."."""
    return tuple((path, path.replace(".", "_")) for path in paths)


def under(source, rules):
    """The rules with the prefix `source` on each module path."""
    return tuple((source + path, *rest) for path, *rest in rules)


@dataclass(frozen=True)
class LoadReport:
    """Result of `load_weights`; print it.

    Args:
        format: name of the file's format, detected from its keys.
        loaded: number of variables set.
        ignored: key → reason.
        missing: variables that the file lacks; empty unless strict=False.
        unexpected: keys that the model has no variable for; empty unless strict=False.
        notes: one line each: what was resized or newly initialized, and what had to be assumed.
    """

    format: str
    loaded: int
    ignored: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self):
        lines = [f"Loaded {self.loaded} variables from a checkpoint in the format of {self.format}."]
        for reason in sorted(set(self.ignored.values())):
            keys = [key for key, why in self.ignored.items() if why == reason]
            lines.append(f"Ignored ({reason}): {_listing(keys)}")
        lines += [f"Missing from the file: {_listing(self.missing)}"] if self.missing else []
        lines += [f"Unexpected in the file: {_listing(self.unexpected)}"] if self.unexpected else []
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, eq=False)  # variables compare elementwise
class Slot:
    """One variable of the model and the keys of the file that hold it."""

    part: str
    layer: str
    name: str
    variable: Any  # keras.Variable
    keys: tuple[str, ...]
    layout: Layout

    def shapes(self):
        """Expected shape of each key, computed without touching data."""
        blank = np.broadcast_to(np.float32(0), tuple(self.variable.shape))
        return [array.shape for array in self.layout.to_theirs(blank)]


def matches(tensors, source):
    """Whether the keys have the signature of a `Format`."""
    shapes = shapes_of(tensors)
    return all(key in shapes and len(shapes[key]) == rank for key, rank in source.signature.items())


def detect(tensors, formats):
    """Return the first of `formats` whose signature the keys have.

    Raises:
        ValueError: none fits; the message lists some keys and the known formats.
    """
    for candidate in formats:
        if matches(tensors, candidate):
            return candidate
    known = ", ".join(dict.fromkeys(candidate.name for candidate in formats))
    raise ValueError(f"The keys match no known format. Found: {_listing(sorted(tensors))}. Known formats: {known}.")


def load_tensors(model, tensors, source, *, strict=True, fresh=(), filename="The file"):
    """Set the model's variables from a checkpoint's arrays; see `zoo.weights.load_weights`.

    Each array is read twice, first to be checked and, once all fit, to be assigned; none is kept in memory.

    Args:
        model: a built model of this package, or a tower or trunk of one.
        tensors: key → array, a `LazyTensors` or a dict.
        source: the `Format` of the keys.
        strict: raise when the file lacks a variable or has an unexpected key.
        fresh: {layer name: reason} of layers that keep their present values; the file's tensors for them are ignored.
        filename: for error messages.

    Raises:
        ValueError: everything that does not fit, in one message; the model is unchanged.
    """
    from keras import ops

    _refuse_foreign_parts(tensors, source, filename)
    slots, missing = match_slots(model, source)
    found, kept = [], []
    for slot in slots:
        if all(key in tensors for key in slot.keys) and slot.layer not in fresh:
            found.append(slot)
        elif slot.name == _LOGIT_BIAS:  # of sigmoid training, which starts from weights of softmax training
            start = float(np.asarray(ops.convert_to_numpy(slot.variable.value)))
            kept.append(f"The file has no logit bias; the model's, {start:g}, is kept.")
        elif slot.layer not in fresh:
            missing.append(f"{', '.join(slot.keys)} (for {slot.name})")
    used = {key for slot in found for key in slot.keys}
    ignored, unexpected = _explain([key for key in tensors if key not in used], model, source, fresh)
    fitted, notes = fit_tensors(found, tensors)
    tensors = ChainMap(fitted, tensors)
    wrong = [problem for slot in found for problem in _misfits(slot, tensors)]
    if wrong or not found or (strict and (missing or unexpected)):
        raise ValueError(_complaint(filename, source, found, missing, unexpected, wrong))
    for slot in found:
        slot.variable.assign(_converted(slot, tensors))
    notes += [
        *kept,
        *(f"{name} is newly initialized: {why}." for name, why in dict(fresh).items()),
        *source.remarks(model),
    ]
    return LoadReport(source.name, len(found), ignored, tuple(missing), tuple(unexpected), tuple(notes))


def _converted(slot, tensors):
    """A slot's value in our layout; where no key holds it, a constant to broadcast."""
    value = slot.layout.to_ours([tensors[key] for key in slot.keys])
    return np.asarray(np.broadcast_to(value, tuple(slot.variable.shape)), order="C")


def _refuse_foreign_parts(tensors, source, filename):
    """ValueError for a checkpoint with a module that no model of this package has."""
    for pattern, what in source.refused:
        key = next((key for key in tensors if _match(pattern, key) is not None), None)
        if key is not None:
            raise ValueError(
                f"{shown(filename)} is in the format of {source.name} and has {what} ({shown(key)}), "
                "which no model of this package has. Nothing was loaded."
            )


def export_tensors(model, target):
    """Return the model's variables as {key: float32 array} in the format `target`.

    Raises:
        ValueError: the format has no name for a variable.
    """
    from keras import ops

    slots, unmapped = match_slots(model, target)
    if unmapped:
        raise ValueError(f"{target.name} has no place for {_listing(unmapped)}.")
    tensors: dict[str, np.ndarray] = {}
    for slot in slots:
        value = np.asarray(ops.convert_to_numpy(slot.variable.value), np.float32)
        tensors |= zip(slot.keys, slot.layout.to_theirs(value), strict=True)
    return tensors


def fitting_format(model, formats):
    """The first of `formats` that names every variable of a model, else the first of them."""
    return next((known for known in formats if not match_slots(model, known)[1]), formats[0])


def classes(tensors, source):
    """Number of classes K of a checkpoint's classifier, or None without a classifier."""
    for path, name, *_ in source.parts.get("image", ()):
        if _match(name, "head_fc") is not None:
            shape = shapes_of(tensors).get(f"{_fill(path, {_ANY: 'head_fc'})}.bias")
            return None if shape is None else math.prod(shape)
    return None


def holds(tensors, source, layer):
    """Whether a checkpoint has tensors for our layer of that name, e.g. "head_norm"."""
    return any(_owner(key, source)[1] == layer for key in tensors)


def match_slots(model, source):
    """([Slot, …], [name of a variable without a rule, …]); every variable of the model is in exactly one of them."""
    slots, unmapped = [], []
    for part, layers in _model_parts(model).items():
        rules = source.parts.get(part, ())
        for name, layer in layers.items():
            matched = _layer_slots(part, name, layer, rules, source)
            taken = {id(slot.variable) for slot in matched}
            slots += matched
            unmapped += [f"{v.path} (no rule)" for v in layer.weights if id(v) not in taken]
    _refuse_doubles(slots, source)
    return slots, unmapped


def _refuse_doubles(slots, source):
    """ValueError for a table with two rules for one key or variable."""
    for claims in (
        [(key, key) for slot in slots for key in slot.keys],
        [(id(slot.variable), slot.name) for slot in slots],
    ):
        counts = Counter(claim for claim, _ in claims)
        doubles = [name for claim, name in claims if counts[claim] > 1]
        if doubles:
            raise ValueError(f"Two rules of {source.name} claim the same: {_listing(doubles)}.")


def _model_parts(model):
    """{"image" | "text" | "pair" | "decoder": {name: layer with weights}} of a pair, a tower, a classifier or an FCMAE.

    The names are those of `convnext.layers_by_name`.
    """
    if hasattr(model, "image_encoder") and hasattr(model, "text_encoder"):
        parts = {"image": model.image_encoder, "text": model.text_encoder}
    elif hasattr(model, "encoder") and hasattr(model, "decoder"):  # convnext.FCMAE
        parts = {"image": model.encoder, "decoder": model.decoder}
    else:
        parts = {"text" if any(layer.name == "token_embedding" for layer in model.layers) else "image": model}
    towers = {part: convnext.layers_by_name(tower) for part, tower in parts.items()}
    if "text" in parts and "image" in parts:
        towers["pair"] = {model.logit_scale.name: model.logit_scale}
    return {part: {name: each for name, each in layers.items() if each.weights} for part, layers in towers.items()}


def _layer_slots(part, label, layer, rules, source):
    slots = []
    for path, name, *tensors in rules:
        numbers = _match(name, label)
        if numbers is None:
            continue
        module = _fill(path, numbers)
        for entry in tensors[0] if tensors else source.tensors(layer):
            variable = _attribute(layer, entry.variable)
            if variable is not None:
                keys = tuple(".".join(filter(None, (module, below))) for below in entry.names)
                slots.append(Slot(part, label, f"{label}/{entry.variable}", variable, keys, entry.layout))
    return slots


def _attribute(layer, path):
    for name in path.split("."):
        layer = getattr(layer, name, None)
    return layer


_PLACEHOLDER = re.compile(r"\{(\d*)([a-z]|\*)(?:\+(\d+))?\}")  # {2s+1}: factor, letter, offset
_ANY = "any"


def _match(template, name):
    """{letter: number or text} if `name` matches the template, else None."""
    pattern, holes = _compile(template)
    match = pattern.fullmatch(name)
    if match is None:
        return None
    values = {}
    for letter, (factor, offset) in holes.items():
        values[letter], rest = (match[letter], 0) if letter == _ANY else divmod(int(match[letter]) - offset, factor)
        if rest:
            return None
    return values


@functools.cache
def _compile(template):
    pattern, holes, end = "", {}, 0
    for hole in _PLACEHOLDER.finditer(template):
        letter = _ANY if hole[2] == "*" else hole[2]
        pattern += re.escape(template[end : hole.start()]) + f"(?P<{letter}>{'.+' if letter == _ANY else '[0-9]+'})"
        holes[letter], end = (int(hole[1] or 1), int(hole[3] or 0)), hole.end()
    return re.compile(pattern + re.escape(template[end:])), holes


def _fill(template, values):
    return _PLACEHOLDER.sub(
        lambda hole: values[_ANY] if hole[2] == "*" else str(values[hole[2]] * int(hole[1] or 1) + int(hole[3] or 0)),
        template,
    )


def _explain(keys, model, source, fresh):
    """({key: reason}, [unexplained key, …]) of the keys that no variable of the model uses."""
    names = {part: set(layers) for part, layers in _model_parts(model).items()}
    ignored, unexplained = {}, []
    for key in keys:
        reason = next((why for pattern, why in source.ignored if _match(pattern, key) is not None), None)
        part, name = _owner(key, source)
        if reason is None and name in fresh:
            reason = "newly initialized layer"
        elif reason is None and part is not None and part not in names:
            reason = f"{_PART_NAMES[part]}, which this model does not have"
        elif reason is None and part is not None and name.startswith("head_") and not names[part].intersection(_HEADS):
            reason = "head, which this model does not have"
        if reason:
            ignored[key] = reason
        else:
            unexplained.append(key)
    return ignored, unexplained


_HEADS = ("head_fc", "head_proj", "head_mlp_fc1")
_PART_NAMES = {
    **{"image": "image tower", "text": "text tower", "pair": "logit scale"},
    "decoder": "decoder of masked pretraining",
}


def _owner(key, source):
    """(part, our layer's name) of a key, or (None, None)."""
    module = key.rpartition(".")[0]
    for part, rules in source.parts.items():
        for path, name, *_ in rules:
            for candidate in (module, key, module.rpartition(".")[0]):
                values = _match(path, candidate)
                if values is not None:
                    return part, _fill(name, values)
    return None, None


def _misfits(slot, tensors):
    """Yield what is wrong with the arrays of a slot: shape, dtype, values."""
    for key, expected in zip(slot.keys, slot.shapes(), strict=True):
        value = tensors[key]
        if value.shape != expected:
            yield f"{shown(key)}: shape {value.shape}, {slot.name} needs {expected}"
        elif value.dtype.kind != "f":
            yield f"{shown(key)}: dtype {value.dtype}, {slot.name} needs floating point"
        elif not np.isfinite(value).all():
            yield f"{shown(key)}: {np.count_nonzero(~np.isfinite(value))} of {value.size} values are NaN or infinite"


def _complaint(filename, source, found, missing, unexpected, wrong):
    lines = [
        f"{shown(filename)} is in the format of {source.name} and does not fit this model; nothing was loaded. "
        f"It has {len(found)} of the model's variables."
    ]
    for title, names in (("Wrong", wrong), ("Missing", missing), ("Unexpected", unexpected)):
        lines += [f"{title} ({len(names)}): {_listing(names, '; ')}"] if names else []
    return "\n".join(lines)


def _listing(names, separator=", "):
    names = list(names)
    text = separator.join(names[:_LISTED])
    return f"{text}{separator}… and {len(names) - _LISTED} more" if len(names) > _LISTED else text
