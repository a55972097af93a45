"""Rule tables applied to a model, in both directions.

A `Format` is one source's naming: two columns, the source's module path and our layer's name, for each part of a model
(the image side, which a classifier also is; the text side; what joins them). The engine walks the model's own layers,
so no architecture is configured here. Loading is all or nothing: each variable is set exactly once, each key of the
file is used exactly once or named with the reason it is not, and nothing is assigned until all of it fits.
"""

import functools
import math
import re
from collections import ChainMap, Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from zoo.weights.layouts import Layout, torch_tensors
from zoo.weights.positions import fit_positions
from zoo.weights.stored import shapes_of

LISTED = 20  # names shown of a long list in an error


@dataclass(frozen=True)
class Format:
    """One source's checkpoint layout.

    Args:
        name: as reports and errors print it.
        signature: key → number of axes; a file with all of them is of this format.
        parts: "image", "text", "pair" → rules. A rule is (source module path, our layer name[, tensors]); `{s}` stands
            for a number in both columns, `{2s+1}` for what it says, `{*}` for any name. The third column names the
            layer's tensors where the source departs from `layouts.TENSORS`.
        ignored: (key pattern, reason) of keys that no variable of ours needs.
        refused: (key pattern, what it belongs to) of parts that no model of ours has.
        tensors: layer → its `Tensor` entries.
        remarks: model → lines for the report: what the source's own code computes otherwise than this model.
    """

    name: str
    signature: dict[str, int]
    parts: dict[str, tuple]
    ignored: tuple[tuple[str, str], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    tensors: Callable = torch_tensors
    remarks: Callable = lambda _: ()


def under(source, rules):
    """The rules with `source` in front of each module path."""
    return tuple((source + path, *rest) for path, *rest in rules)


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did.

    Args:
        format: the source's naming, detected from the keys.
        loaded: number of variables set.
        ignored: key → reason.
        missing: variables that the file has nothing for; always empty under strict loading.
        unexpected: keys that the model has no variable for; likewise.
        notes: a line each for what was made to fit, and for what the file does not say and had to be assumed.
    """

    format: str
    loaded: int
    ignored: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self):
        lines = [f"{self.loaded} variables set from a checkpoint in the format of {self.format}."]
        for reason in sorted(set(self.ignored.values())):
            keys = [key for key, why in self.ignored.items() if why == reason]
            lines.append(f"Ignored ({reason}): {_listing(keys)}")
        lines += [f"Missing from the file: {_listing(self.missing)}"] if self.missing else []
        lines += [f"Left over in the file: {_listing(self.unexpected)}"] if self.unexpected else []
        return "\n".join([*lines, *self.notes])


@dataclass(frozen=True, eq=False)  # variables compare elementwise
class Slot:
    """One variable of the model and the keys of the source that hold it."""

    part: str
    layer: str
    name: str
    variable: object
    keys: tuple[str, ...]
    layout: Layout

    def shapes(self):
        """The shape each key must have, worked out without touching data."""
        blank = np.broadcast_to(np.float32(0), tuple(self.variable.shape))
        return [array.shape for array in self.layout.to_theirs(blank)]


def detect(tensors, formats):
    """The first of `formats` whose signature the keys carry.

    Raises:
        ValueError: none; it shows some keys and the formats there are.
    """
    shapes = shapes_of(tensors)
    for candidate in formats:
        if all(key in shapes and len(shapes[key]) == rank for key, rank in candidate.signature.items()):
            return candidate
    known = ", ".join(dict.fromkeys(candidate.name for candidate in formats))
    raise ValueError(f"The keys fit no known format. Found: {_listing(sorted(tensors))}. Known formats: {known}.")


def load_tensors(model, tensors, source, *, strict=True, fresh=(), filename="The file"):
    """Sets the model's variables from a checkpoint's arrays; see `zoo.weights.load_weights`.

    Each array is looked at twice, once to be checked and once, when all of them are, to be assigned: none is kept.

    Args:
        model: a built model of this package, a tower or a trunk of one.
        tensors: key → array, a `Stored` or a dict.
        source: the `Format` the keys are in.
        strict: refuse a file that lacks a variable or has a key left over.
        fresh: {name of a layer that keeps the values it has: why}; what the file holds for it is ignored.
        filename: for the error.

    Raises:
        ValueError: everything that does not fit, in one message; the model is untouched.
    """
    _refuse_foreign_parts(tensors, source, filename)
    slots, missing = match_slots(model, source)
    found = []
    for slot in slots:
        if all(key in tensors for key in slot.keys) and slot.layer not in fresh:
            found.append(slot)
        elif slot.layer not in fresh:
            missing.append(f"{', '.join(slot.keys)} (for {slot.name})")
    used = {key for slot in found for key in slot.keys}
    ignored, unexpected = _explain([key for key in tensors if key not in used], model, source, fresh)
    fitted, notes = fit_positions([slot for slot in found if slot.part == "image"], tensors)
    tensors = ChainMap(fitted, tensors)
    wrong = [problem for slot in found for problem in _misfits(slot, tensors)]
    if wrong or not found or (strict and (missing or unexpected)):
        raise ValueError(_complaint(filename, source, found, missing, unexpected, wrong))
    for slot in found:
        slot.variable.assign(_converted(slot, tensors))
    notes += [*(f"{why}: {name} is new." for name, why in dict(fresh).items()), *source.remarks(model)]
    return LoadReport(source.name, len(found), ignored, tuple(missing), tuple(unexpected), tuple(notes))


def _converted(slot, tensors):
    """A slot's value in our layout; one that no key holds is a number to spread."""
    value = slot.layout.to_ours([tensors[key] for key in slot.keys])
    return np.asarray(np.broadcast_to(value, tuple(slot.variable.shape)), order="C")


def _refuse_foreign_parts(tensors, source, filename):
    """ValueError for a checkpoint of an architecture that this package has no row for."""
    for pattern, what in source.refused:
        key = next((key for key in tensors if _match(pattern, key) is not None), None)
        if key is not None:
            raise ValueError(
                f"{filename} is in the format of {source.name} and has {what} ({key}), which no model of this package "
                "has. Nothing was loaded."
            )


def export_tensors(model, target):
    """The model's variables as a checkpoint of another library: {key: float32 array} in the format `target`.

    Raises:
        ValueError: the format has no place for a variable.
    """
    from keras import ops

    slots, homeless = match_slots(model, target)
    if homeless:
        raise ValueError(f"{target.name} has no place for {_listing(homeless)}.")
    tensors = {}
    for slot in slots:
        value = np.asarray(ops.convert_to_numpy(slot.variable.value), np.float32)
        tensors |= zip(slot.keys, slot.layout.to_theirs(value), strict=True)
    return tensors


def classes(tensors, source):
    """K, the classes that a checkpoint's classifier tells apart, or None when it has no classifier."""
    for path, name, *_ in source.parts.get("image", ()):
        if _match(name, "head_fc") is not None:
            shape = shapes_of(tensors).get(f"{_fill(path, {ANY: 'head_fc'})}.bias")
            return None if shape is None else math.prod(shape)
    return None


def holds(tensors, source, layer):
    """Whether a checkpoint has anything for our layer of that name, e.g. "head_norm"."""
    return any(_owner(key, source)[1] == layer for key in tensors)


def match_slots(model, source):
    """([Slot, …], [name of a variable that no rule reaches, …]), each variable of the model in exactly one."""
    slots, homeless = [], []
    for part, layers in model_parts(model).items():
        rules = source.parts.get(part, ())
        for layer in layers:
            matched = _layer_slots(part, layer, rules, source)
            taken = {id(slot.variable) for slot in matched}
            slots += matched
            homeless += [f"{v.path} (no rule)" for v in layer.weights if id(v) not in taken]
    _refuse_doubles(slots, source)
    return slots, homeless


def _refuse_doubles(slots, source):
    """ValueError for a table in which two rules meet."""
    for claims in (
        [(key, key) for slot in slots for key in slot.keys],
        [(id(slot.variable), slot.name) for slot in slots],
    ):
        counts = Counter(claim for claim, _ in claims)
        doubles = [name for claim, name in claims if counts[claim] > 1]
        if doubles:
            raise ValueError(f"Two rules of {source.name} claim the same: {_listing(doubles)}.")


def model_parts(model):
    """{"image" | "text" | "pair" | "decoder": layers with weights} of a pair, a tower, a classifier, or a FCMAE."""
    if hasattr(model, "image_encoder") and hasattr(model, "text_encoder"):
        towers = {
            "image": model.image_encoder.layers,
            "text": model.text_encoder.layers,
            "pair": [model.logit_scale],
        }
    elif hasattr(model, "encoder") and hasattr(model, "decoder"):  # convnext.FCMAE
        towers = {"image": model.encoder.layers, "decoder": model.decoder.layers}
    else:
        is_text = any(layer.name == "token_embedding" for layer in model.layers)
        towers = {"text" if is_text else "image": model.layers}
    return {part: [layer for layer in layers if layer.weights] for part, layers in towers.items()}


def _layer_slots(part, layer, rules, source):
    slots = []
    for path, name, *tensors in rules:
        numbers = _match(name, layer.name)
        if numbers is None:
            continue
        module = _fill(path, numbers)
        for entry in tensors[0] if tensors else source.tensors(layer):
            variable = _attribute(layer, entry.variable)
            if variable is not None:
                keys = tuple(".".join(filter(None, (module, below))) for below in entry.names)
                name = f"{layer.name}/{entry.variable}"
                slots.append(Slot(part, layer.name, name, variable, keys, entry.layout))
    return slots


def _attribute(layer, path):
    for name in path.split("."):
        layer = getattr(layer, name, None)
    return layer


PLACEHOLDER = re.compile(r"\{(\d*)([a-z]|\*)(?:\+(\d+))?\}")  # {2s+1}: factor, letter, offset
ANY = "any"


def _match(template, name):
    """{letter: number or text} when `name` has the template's form, else None."""
    pattern, holes = _compile(template)
    match = pattern.fullmatch(name)
    if match is None:
        return None
    values = {}
    for letter, (factor, offset) in holes.items():
        values[letter], rest = (match[letter], 0) if letter == ANY else divmod(int(match[letter]) - offset, factor)
        if rest:
            return None
    return values


@functools.cache
def _compile(template):
    pattern, holes, end = "", {}, 0
    for hole in PLACEHOLDER.finditer(template):
        letter = ANY if hole[2] == "*" else hole[2]
        pattern += re.escape(template[end : hole.start()]) + f"(?P<{letter}>{'.+' if letter == ANY else '[0-9]+'})"
        holes[letter], end = (int(hole[1] or 1), int(hole[3] or 0)), hole.end()
    return re.compile(pattern + re.escape(template[end:])), holes


def _fill(template, values):
    return PLACEHOLDER.sub(
        lambda hole: values[ANY] if hole[2] == "*" else str(values[hole[2]] * int(hole[1] or 1) + int(hole[3] or 0)),
        template,
    )


def _explain(keys, model, source, fresh):
    """({key: reason}, [key without one, …]) of the keys that no variable of the model took."""
    names = {part: {layer.name for layer in layers} for part, layers in model_parts(model).items()}
    ignored, unexplained = {}, []
    for key in keys:
        reason = next((why for pattern, why in source.ignored if _match(pattern, key) is not None), None)
        part, name = _owner(key, source)
        if reason is None and name in fresh:
            reason = "layer that stays new"
        elif reason is None and part is not None and part not in names:
            reason = f"{PART_NAMES[part]}, which this model does not have"
        elif reason is None and part is not None and name.startswith("head_") and not names[part].intersection(HEADS):
            reason = "head, which this model does not have"
        if reason:
            ignored[key] = reason
        else:
            unexplained.append(key)
    return ignored, unexplained


HEADS = ("head_fc", "head_proj", "head_mlp_fc1")
PART_NAMES = {
    **{"image": "image tower", "text": "text tower", "pair": "logit scale"},
    "decoder": "decoder of masked pretraining",
}


def _owner(key, source):
    """(part, our layer's name) that the tables give a key, or (None, None)."""
    module = key.rpartition(".")[0]
    for part, rules in source.parts.items():
        for path, name, *_ in rules:
            for candidate in (module, key, module.rpartition(".")[0]):
                values = _match(path, candidate)
                if values is not None:
                    return part, _fill(name, values)
    return None, None


def _misfits(slot, tensors):
    """What is wrong with the arrays of a slot: shape, dtype, values."""
    for key, expected in zip(slot.keys, slot.shapes(), strict=True):
        value = tensors[key]
        if value.shape != expected:
            yield f"{key}: shape {value.shape}, {slot.name} needs {expected}"
        elif value.dtype.kind != "f":
            yield f"{key}: dtype {value.dtype}, {slot.name} needs floating point"
        elif not np.isfinite(value).all():
            yield f"{key}: {np.count_nonzero(~np.isfinite(value))} of {value.size} values are NaN or infinite"


def _complaint(filename, source, found, missing, unexpected, wrong):
    lines = [
        f"{filename} is in the format of {source.name} and does not fit this model; nothing was loaded. "
        f"It has {len(found)} of the model's variables."
    ]
    for title, names in (("Wrong", wrong), ("Missing", missing), ("Left over", unexpected)):
        lines += [f"{title} ({len(names)}): {_listing(names, '; ')}"] if names else []
    return "\n".join(lines)


def _listing(names, separator=", "):
    names = list(names)
    shown = separator.join(names[:LISTED])
    return f"{shown}{separator}… and {len(names) - LISTED} more" if len(names) > LISTED else shown
