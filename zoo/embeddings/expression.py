"""Query expressions: texts and image files, added and subtracted with weights.

    red car - truck + 2:night          three texts
    beach.jpg + "at night"             an image file and a text
    "Paris - France"                   one text: nothing in quotes is an operator, a weight or a file

An operator is + or - between spaces, so "black-and-white" is one text. A weight is a number and a colon before a term,
not followed by a digit, so "16:9 monitor" is one text.
"""

import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zoo.data.folders import IMAGE_EXTENSIONS
from zoo.data.plugins import EXTENSIONS as PLUGIN_EXTENSIONS
from zoo.utils.text import quoted, shown

MAX_TERMS = 32
_MAX_WEIGHT = 1000.0
_SYNTAX = re.compile(r"""(?<!\S)(?P<quoted>"[^"]*"|[+-]?\d+(?:\.\d+)?:"[^"]*")(?!\S)|(?<!\S)(?P<operator>[+-])(?!\S)""")
_WEIGHT = re.compile(r"([+-]?\d+(?:\.\d+)?):(?!\d)\s*(.*)", re.DOTALL)
_QUOTED = re.compile(r'"([^"]*)"')
_MINIMUM_NORM = 1e-3  # of a sum of unit vectors; below, little but rounding is left


class Term(NamedTuple):
    """One term of an expression.

    Args:
        weight: its factor, not 0.
        text: a text, or the path of an image file.
        is_image: whether it is a path.
    """

    weight: float
    text: str
    is_image: bool = False


def parse_query(query: str, *, images: bool = True) -> list[Term]:
    """Return the terms of an expression, at least one.

    Args:
        query: see the module's docstring. A term that ends in an extension of an image file is an image.
        images: whether terms may be image files. With False every term is a text, and no file is looked for: for
            queries from other people.

    Raises:
        ValueError: an empty term, an unpaired quote, a weight out of bounds, more than MAX_TERMS terms.
        FileNotFoundError: a term that names an image file that does not exist.
    """
    pieces, signs, last = [], ["+"], 0
    for match in _SYNTAX.finditer(query):
        if match["operator"]:
            pieces.append(query[last : match.start()])
            signs.append(match["operator"])
            last = match.end()
    pieces.append(query[last:])
    if len(pieces) > 1 and not pieces[0].strip():  # a leading sign
        pieces, signs = pieces[1:], signs[1:]
    if len(pieces) > MAX_TERMS:
        raise ValueError(f"the query has {len(pieces)} terms; at most {MAX_TERMS} are allowed")
    return [_term(piece.strip(), sign, query, images) for piece, sign in zip(pieces, signs, strict=True)]


def _term(text: str, sign: str, query: str, images: bool) -> Term:
    weight = -1.0 if sign == "-" else 1.0
    if found := _WEIGHT.fullmatch(text):
        weight, text = weight * float(found[1]), found[2]
        if not 0 < abs(weight) <= _MAX_WEIGHT:
            allowed = f"numbers up to {_MAX_WEIGHT:g}, except 0"
            raise ValueError(f"weight {shown(found[1], 40)} in {quoted(query)}; allowed are {allowed}")
    if text.startswith('"') and text.count('"') % 2:
        raise ValueError(f"{quoted(text)} in {quoted(query)} begins with a quote that is not closed")
    in_quotes = _QUOTED.fullmatch(text)
    if in_quotes:
        text = in_quotes[1]
    if not text.strip():
        raise ValueError(
            f"{quoted(query)} has an empty term; write terms between + and -, and put a text with such signs in quotes"
        )
    is_image = images and not in_quotes and text.lower().endswith((*IMAGE_EXTENSIONS, *PLUGIN_EXTENSIONS))
    if is_image and not os.path.isfile(text):
        raise FileNotFoundError(f"No image at {quoted(text)}. To search for this as a text, put it in double quotes.")
    return Term(weight, text, is_image)


def combine(weights: Sequence[float], vectors: np.ndarray) -> np.ndarray:
    """Return the weighted sum of unit vectors, float32 (N, D), as a unit vector, float32 (D,).

    A single vector of positive weight is returned as it is.

    Raises:
        ValueError: the terms cancel each other.
    """
    if len(weights) == 1 and weights[0] > 0:
        return vectors[0]
    total = np.asarray(weights, np.float64) @ vectors
    length = math.sqrt(float(total @ total))
    if length < _MINIMUM_NORM * max(map(abs, weights)):
        raise ValueError("the terms of the query cancel each other; nothing is left to search for")
    return (total / length).astype(np.float32)
