"""Weights from elsewhere → one file of our own format."""

from dataclasses import dataclass
from pathlib import Path

from zoo.data.preprocess import PreprocessSpec
from zoo.models.assembly import assemble
from zoo.models.names import find, find_tagged, name_of
from zoo.models.recipes import Recipe, check_activation, named, published
from zoo.models.registry import HUB, located, save
from zoo.utils.files import sha256
from zoo.weights import detect_format, native, read_checkpoint

# Of two accounts of one preprocessing.
COMPARED = ("image_size", "mean", "std", "interpolation", "resize_mode", "crop_pct")


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Args:
        source: what was read.
        sha256: its digest.
        format: its naming, detected from its keys.
        name: the architecture, with the weights' tag where one was given.
        licence: of the weights; None when nobody said.
        preprocess: of their pictures; None when nobody said.
        path: the file written.
    """

    source: str
    sha256: str
    format: str
    name: str
    licence: str | None
    preprocess: PreprocessSpec | None
    path: str

    def __str__(self):
        said = [] if self.licence is None else [f"licence {self.licence}"]
        said += ["no word on preprocessing"] if self.preprocess is None else []
        extra = f" ({', '.join(said)})" if said else ""
        return f"{self.source}: format {self.format}, SHA-256 {self.sha256}\n{self.path}: {self.name}{extra}"


def convert(source: str | Path, path: str | Path, *, arch: str | None = None) -> Conversion:
    """Writes weights from elsewhere as a model of our own format, with their name, digest and preprocessing.

    Args:
        source: a weight file; or a folder in the layout of a hub, or "hf-hub:owner/name", whose configuration says what
            it is.
        path: of the new file; ends in `.safetensors`.
        arch: name of the architecture; with a tag, the source is taken for these published weights, and what is known
            of them is written down with it. May be left out where a configuration says it.

    Raises:
        ValueError: the weights do not fit, or a configuration contradicts the tag.
    """
    source, path = str(source), Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"A converted model is a .safetensors file, got {path.name!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No folder {str(path.parent)!r} to write {path.name} to.")
    said, weights = located(source) if source.startswith(HUB) or Path(source).is_dir() else (None, Path(source))
    checkpoint = read_checkpoint(weights)
    said = said or _own_word(checkpoint)
    if said is None and arch is None:
        raise ValueError(f"{Path(source).name} does not say which architecture it is for. Name it with --arch.")
    asked = _recipe(arch) if arch else None
    model, description = assemble(_agreed(asked, said) if asked else said, checkpoint)
    name = asked.origin if asked else name_of(description.family, description.arguments["variant"], model.name)
    digest, found = sha256(weights), detect_format(checkpoint).name
    given = description.source or {"name": name, "sha256": digest, "format": found}
    save(model, path, source=given)
    return Conversion(source, digest, found, name, description.licence, description.preprocess, str(path))


def _recipe(arch):
    entry = find(arch)
    return published(entry, find_tagged(entry)) if entry.tag else named(entry)


def _own_word(checkpoint):
    """What a file of our own format says of itself, or None for another."""
    if not native.is_own(checkpoint):
        return None
    return Recipe(native.parse(checkpoint.metadata, checkpoint.path.name), checkpoint.path.name, from_weights=True)


def _agreed(asked, said):
    """The recipe that `asked` names, completed by what the source says of itself.

    Raises:
        ValueError: they contradict each other.
    """
    if said is None:
        return asked
    ours, theirs = asked.description, said.description
    for what, one, other in (
        ("family", ours.family, theirs.family),
        ("variant", ours.arguments["variant"], theirs.arguments["variant"]),
    ):
        if one != other:
            raise ValueError(f"{said.origin} has {what} {other!r}, and {asked.origin} has {one!r}.")
    if asked.row is None:
        return said
    check_activation(asked.origin, ours.arguments.get("activation"), theirs.arguments.get("activation"))
    for field in COMPARED if theirs.preprocess else ():
        one, other = getattr(ours.preprocess, field), getattr(theirs.preprocess, field)
        if one != other:
            raise ValueError(f"{asked.origin} is preprocessed with {field} {one!r}, and {said.origin} says {other!r}.")
    return asked
