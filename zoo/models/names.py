"""Names of models: listed, and taken apart.

A classifier has its timm name (`convnext_base`, `convnextv2_tiny`, `resnet50`), a pair open_clip's under `clip/`
(`clip/ViT-B-32`, `clip/convnext_v2_tiny`); `clip/` may be left out where no classifier has the same name. A tag of
published weights follows after a dot. Everything here reads tables and needs no backend.
"""

import difflib
import fnmatch
from typing import NamedTuple

import clip
from convnext import called_here
from zoo.utils.text import quoted
from zoo.weights.config import ModelConfig, catalogue
from zoo.weights.published import Weights, find_weights, restriction, tags
from zoo.weights.schema import CLIP


class Entry(NamedTuple):
    """A name taken apart.

    Fields:
        name: as `list_models` prints it.
        family: "convnext", "convnextv2", "resnet" or "clip".
        label: name in the family's table.
        builder_name: argument of the family's builder; a pair's may be another spelling, "ViT-B-32-quickgelu".
        tag: tag of published weights, or None.
    """

    name: str
    family: str
    label: str
    builder_name: str
    tag: str | None = None


def list_models(pattern: str = "*", weights: str | None = None) -> list[str]:
    """Return the names that match a pattern: classifiers first, each family from small to large.

    Args:
        pattern: shell-style, e.g. `convnextv2_*`, `*vit*`. Case does not matter, and a pair also matches by its name
            without `clip/`.
        weights: shell-style pattern of weight tags; the names of matching published weights are returned, `name.tag`.
    """
    names = [name for name in catalogue() if _matches(name, pattern)]
    if weights is None:
        return names
    return [row.full_name for name in names for tag, row in tags(name).items() if _matches(tag, weights)]


def list_or_raise(pattern: str = "*", weights: str | None = None) -> list[str]:
    """`list_models` for the command line.

    Raises:
        ValueError: nothing matches.
    """
    names = list_models(pattern, weights)
    if not names:
        with_weights = "" if weights is None else f" with published weights {quoted(weights)}"
        raise ValueError(f"No model matches {quoted(pattern)}{with_weights}.{_did_you_mean(pattern.strip('*'))}")
    return names


def to_text(names: list[str]) -> str:
    """One name a line; published weights with top-1 accuracy and licence."""
    rows = [find_weights(*name.split(".", 1)) if "." in name else None for name in names]
    width = max(map(len, names))
    return "\n".join(_line(name, row, width) if row else name for name, row in zip(names, rows, strict=True))


def _line(name, row, width):
    score = "–" if row.score is None else f"{row.score:.2f} %"
    remark = restriction(row.licence)
    return f"{name:<{width}}  {score:>7}  {row.licence}" + (f" ({remark})" if remark else "")


def _matches(name, pattern):
    forms = (name, name.removeprefix(f"{CLIP}/"))
    patterns = (pattern, pattern.replace("/", "-").replace("@336px", "-336"))  # OpenAI's spelling
    return any(fnmatch.fnmatchcase(form.lower(), p.lower()) for form in forms for p in patterns)


def find(name: str) -> Entry:
    """Take a name apart, with or without `clip/` and with or without a weights tag.

    A name that a classifier and a pair share is the pair's where only the pair has the tag.

    Raises:
        ValueError: an unknown name; the message suggests the nearest ones.
    """
    whole, (base, _, tag) = str(name), str(name).partition(".")
    for candidate, rest in ((whole, None), (base, tag or None)):
        if candidate in catalogue():
            is_pairs = rest and not find_weights(candidate, rest) and find_weights(f"{CLIP}/{candidate}", rest)
            candidate = f"{CLIP}/{candidate}" if is_pairs else candidate
            family, label = catalogue()[candidate]
            return Entry(candidate, family, label, label, rest)
        if label := _pair_label(candidate.removeprefix(f"{CLIP}/")):
            return Entry(f"{CLIP}/{label}", CLIP, label, candidate.removeprefix(f"{CLIP}/"), rest)
    raise ValueError(
        f"Unknown model {quoted(name)}.{called_here(whole) or _did_you_mean(base)} `zoo list` prints all "
        f"{len(catalogue())} names."
    )


def find_tagged(entry: Entry) -> Weights:
    """Return the row of the published weights that an entry names.

    Raises:
        ValueError: there are no such weights; the message lists those there are.
    """
    row = find_weights(entry.name, str(entry.tag))
    if row is not None:
        return row
    known = list(tags(entry.name))
    near = difflib.get_close_matches(str(entry.tag)[:100], known, n=3) or known[:6]
    there = f"There are {', '.join(map(repr, near))}" if near else "None are published"
    more = f" and others: `zoo list {entry.name} --weights`" if len(known) > len(near) else ""
    raise ValueError(f"There are no weights {quoted(entry.tag)} for {entry.name}. {there}{more}.")


def config_of(entry: Entry) -> ModelConfig:
    """Return the config of an entry: of the published weights if it has a tag, else of the architecture.

    Raises:
        ValueError: there are no such weights, or they have another activation than the name's spelling requires.
    """
    activation = spelled_activation(entry)
    if entry.tag:
        return ModelConfig.from_published(find_tagged(entry), activation)
    return ModelConfig.from_name(entry.name, activation)


def spelled_activation(entry: Entry) -> str | None:
    """Activation that the spelling of a pair's name requires ("ViT-B-32-quickgelu"), or None."""
    return clip.canonical_name(entry.builder_name)[1] if entry.family == CLIP else None


def _pair_label(name):
    """The table's spelling of a pair's name, which may be OpenAI's ("ViT-B/32"), or None."""
    try:
        return clip.canonical_name(name)[0]
    except ValueError:
        return None


def _did_you_mean(name):
    """ " Did you mean 'convnextv2_tiny'?", also where the difference is `v2` against `_v2`; "" if nothing is near."""
    bare = {form.removeprefix(f"{CLIP}/"): form for form in reversed(catalogue())}
    plain: dict[str, list] = {}
    for spelling in [*catalogue(), *bare]:
        plain.setdefault(_squeeze(spelling), []).append(bare.get(spelling, spelling))
    close = difflib.get_close_matches(_squeeze(name)[:100], plain, n=3)
    exact = plain.get(_squeeze(name), [])
    names = list(dict.fromkeys(exact or [spelling for form in close for spelling in plain[form]]))[:3]
    return f" Did you mean {' or '.join(map(repr, names))}?" if names else ""


def _squeeze(name):
    return "".join(letter for letter in name.lower() if letter.isalnum())
