"""What the zoo calls its models, and names taken apart.

A classifier has its timm name (`convnext_base`, `convnextv2_tiny`, `resnet50`), a pair open_clip's under `clip/`
(`clip/ViT-B-32`, `clip/convnext_v2_tiny`). A pair's bare name does where no classifier has it. Published weights follow
after a dot. Read off tables, without a backend.
"""

import difflib
import fnmatch
import functools
from typing import NamedTuple

from zoo.weights.published import Weights, find_weights, restriction, tags
from zoo.weights.schema import CLIP, RESNET


class Entry(NamedTuple):
    """A name taken apart: `builder_name` is what the family's builder is called with."""

    name: str
    family: str
    label: str
    builder_name: str
    tag: str | None = None


def list_models(pattern: str = "*", weights: str | None = None) -> list[str]:
    """The names that match a pattern, classifiers first, each family from small to large.

    Args:
        pattern: as in a shell, e.g. "convnextv2_*", "*vit*"; case does not matter, and a pair also answers to its name
            without `clip/`.
        weights: pattern of weight tags. The names of published weights that match are listed, `name.tag`, in place of
            the architectures.
    """
    names = [name for name in catalogue() if _matches(name, pattern)]
    if weights is None:
        return names
    return [row.full_name for name in names for tag, row in tags(name).items() if _matches(tag, weights)]


def listed(pattern: str = "*", weights: str | None = None) -> list[str]:
    """`list_models`, for the command line.

    Raises:
        ValueError: nothing matches.
    """
    names = list_models(pattern, weights)
    if not names:
        of_weights = "" if weights is None else f" with published weights {weights!r}"
        raise ValueError(f"No model matches {pattern!r}{of_weights}.{_nearest(pattern.strip('*'))}")
    return names


def to_text(names: list[str]) -> str:
    """A name a line; of published weights also what a choice among them rests on: top-1 accuracy and licence."""
    rows = [find_weights(*name.split(".", 1)) if "." in name else None for name in names]
    width = max(map(len, names))
    return "\n".join(_line(name, row, width) if row else name for name, row in zip(names, rows, strict=True))


def _line(name, row, width):
    score = "–" if row.score is None else f"{row.score:.2f} %"
    remark = restriction(row.licence)
    return f"{name:<{width}}  {score:>7}  {row.licence}" + (f" ({remark})" if remark else "")


def _matches(name, pattern):
    pattern = pattern.lower()
    forms = (name, name.removeprefix(f"{CLIP}/"))
    return any(fnmatch.fnmatchcase(form.lower(), pattern) for form in forms)


@functools.cache
def catalogue() -> dict[str, tuple[str, str]]:
    """{name: (family, label)} of everything there is, in the order of the tables."""
    import clip
    import convnext

    classifiers = {
        f"{family}{label}" if family == RESNET else f"{family}_{label}": (family, label)
        for family, table in convnext.TABLES.items()
        for label in table
    }
    return classifiers | {f"{CLIP}/{label}": (CLIP, label) for label in clip.VARIANTS}


def name_of(family: str, label: object, otherwise: str) -> str:
    """The name of a family's row, or `otherwise`, e.g. for a row of one's own."""
    return next((name for name, row in catalogue().items() if row == (family, label)), otherwise)


def find(name: str) -> Entry:
    """The `Entry` of a name, with or without `clip/` and with or without a weights tag.

    A name that a classifier and a pair share is the pair's where only the pair has the tag.

    Raises:
        ValueError: no model has this name; the nearest ones are offered.
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
    raise ValueError(f"Unknown model {name!r}.{_nearest(base)} `zoo list` prints all {len(catalogue())} names.")


def find_tagged(entry: Entry) -> Weights:
    """The row of the weights that an entry names.

    Raises:
        ValueError: there are no such weights; those there are, are named.
    """
    row = find_weights(entry.name, entry.tag)
    if row is not None:
        return row
    known = list(tags(entry.name))
    near = difflib.get_close_matches(entry.tag, known, n=3) or known[:6]
    there = f"There are {', '.join(map(repr, near))}" if near else "None are published"
    more = f" and others: `zoo list {entry.name} --weights`" if len(known) > len(near) else ""
    raise ValueError(f"There are no weights {entry.tag!r} for {entry.name}. {there}{more}.")


def _pair_label(name):
    """The table's spelling of a pair's name, which may be OpenAI's, or None."""
    import clip

    try:
        return clip.canonical_name(name)[0]
    except ValueError:
        return None


def _nearest(name):
    """ " Did you mean 'convnextv2_tiny'?", also where the difference is `v2` against `_v2`."""
    bare = {form.removeprefix(f"{CLIP}/"): form for form in reversed(catalogue())}
    plain: dict[str, list] = {}
    for spelling in [*catalogue(), *bare]:
        plain.setdefault(_squeeze(spelling), []).append(bare.get(spelling, spelling))
    close = difflib.get_close_matches(_squeeze(name), plain, n=3)
    exact = plain.get(_squeeze(name), [])
    names = list(dict.fromkeys(exact or [spelling for form in close for spelling in plain[form]]))[:3]
    return f" Did you mean {' or '.join(map(repr, names))}?" if names else ""


def _squeeze(name):
    return "".join(letter for letter in name.lower() if letter.isalnum())
