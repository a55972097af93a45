"""The fields of each request, declared once: they check its body, and they are its OpenAPI description."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zoo.serve.limits import ApiError, Limits
from zoo.utils.strict_json import OBJECT, is_utf8, parse_json
from zoo.utils.text import quoted, shown

MAX_JSON_PARTS = 20_000  # values of a body; a base64 image is one
EXAMPLE = (  # an image of one pixel
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5"
    "ErkJggg=="
)


@dataclass(frozen=True)
class Field:
    """One field of a JSON body.

    Args:
        kind: "text"; "image", a data URI; "input", one or the other; "texts" and "inputs", one or several; "number";
            "integer"; "boolean"; or "filter", an object of strings, numbers and booleans.
        doc: what it means.
        required: whether it must be there.
        default: its value where it is not.
        choices: allowed texts.
        minimum, maximum: of a number.
    """

    kind: str
    doc: str
    required: bool = False
    default: Any = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


MODEL = Field("text", "name of the served model, as in /v1/models; any other is refused")


def fields_of(limits: Limits) -> dict[str, dict[str, Field]]:
    """Return {path: {name: field}}."""
    image = Field("image", "data:image/TYPE;base64,DATA. No URL is fetched")
    return {
        "/v1/embeddings": {
            "input": Field("inputs", "a text or an image as a data URI, or a list of them", required=True),
            "modality": Field("text", "what the input is", default="text", choices=("text", "image")),
            "encoding_format": Field("text", "of the embeddings", default="float", choices=("float", "base64")),
            "dimensions": Field("integer", "must be the model's, if given", minimum=1),
            "model": MODEL,
            "user": Field("text", "ignored"),
        },
        "/v1/classify": {
            "image": Field("image", image.doc, required=True),
            "labels": Field("texts", "names of the classes; required for a CLIP model, none for a classifier"),
            "templates": Field("texts", "prompts with one {} each", default=["a photo of a {}."]),
            "activation": Field(
                "text",
                "softmax: probabilities sum to 1; sigmoid: each class has its own; auto: as the model was trained",
                default="auto",
                choices=("auto", "softmax", "sigmoid"),
            ),
            "top": Field("integer", "number of classes to return; default all, of a classifier 5", minimum=1),
            "model": MODEL,
        },
        "/v1/rerank": {
            "query": Field("input", "a text, or an image as a data URI", required=True),
            "documents": Field("inputs", "texts or images as data URIs", required=True),
            "top_n": Field("integer", "number of results; default all", minimum=1),
            "return_documents": Field("boolean", "repeat the documents in the answer", default=False),
            "model": MODEL,
        },
        "/v1/search": {
            "query": Field("text", "a text or an expression, such as red car - truck + 2:night"),
            "image": image,
            "k": Field("integer", "number of results", default=10, minimum=1, maximum=limits.max_results),
            "where": Field("filter", "metadata that a result must have: {key: value}"),
            "min_score": Field("number", "leave out results with a lower cosine", minimum=-1, maximum=1),
            "model": MODEL,
        },
    }


def parse_body(data: bytes) -> dict:
    """Return the JSON object of a body.

    Raises:
        ApiError: not UTF-8, not JSON, not an object, or more than MAX_JSON_PARTS values.
    """
    if data.count(b",") + data.count(b"[") + data.count(b"{") > MAX_JSON_PARTS:
        raise ApiError(400, f"the body has more than {MAX_JSON_PARTS} values")
    try:
        return parse_json(data, "the body", OBJECT)
    except ValueError as error:
        raise ApiError(400, str(error)) from error


def check(body: Mapping[str, Any], fields: Mapping[str, Field], limits: Limits) -> dict[str, Any]:
    """Return the values of all fields, with defaults.

    Raises:
        ApiError: an unknown field, a missing one, or a value of another type or out of bounds.
    """
    for name in body:
        if name not in fields:
            nearest = difflib.get_close_matches(name[:80], fields, n=1, cutoff=0.0)[0]
            message = f"there is no field {quoted(name, 80)}; nearest is {nearest!r}, allowed are {', '.join(fields)}"
            raise ApiError(400, message, shown(name, 80))
    values = {}
    for name, field in fields.items():
        value = body.get(name)
        if value is None:
            if field.required:
                raise ApiError(400, f"{name} is missing; it is {field.doc}", name)
            values[name] = field.default
        else:
            values[name] = _check_value(name, value, field, limits)
    return values


def _check_value(name: str, value: Any, field: Field, limits: Limits) -> Any:
    if field.kind in ("text", "image", "input"):
        return _check_text(name, value, field, limits)
    if field.kind in ("texts", "inputs"):
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not texts:
            raise _wrong(name, value, "a string or a list of at least one")
        bound = _bound(field, limits)
        if len(texts) > bound:
            raise _refused(name, f"has {len(texts)} entries; at most {bound} are allowed")
        return [_check_text(f"{name}[{place}]", text, field, limits) for place, text in enumerate(texts)]
    if field.kind == "boolean":
        if not isinstance(value, bool):
            raise _wrong(name, value, "true or false")
        return value
    if field.kind == "filter":
        return _check_filter(name, value, limits)
    return _check_number(name, value, field)


def _bound(field: Field, limits: Limits) -> int:
    return limits.max_prompts if field.kind == "texts" else limits.max_inputs


def _check_text(name: str, value: Any, field: Field, limits: Limits) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "a string")
    if field.choices and value not in field.choices:
        raise _wrong(name, value, " or ".join(field.choices))
    may_be_image = field.kind in ("image", "input", "inputs") and value.startswith("data:")
    if not may_be_image and len(value) > limits.max_text:
        raise _refused(name, f"has {len(value)} characters; at most {limits.max_text} are allowed")
    if not is_utf8(value):
        raise _refused(name, "has half of a surrogate pair; it must be valid Unicode")
    return value


def _check_number(name: str, value: Any, field: Field) -> float | int:
    whole = field.kind == "integer"
    allowed = "an integer" if whole else "a number"
    if field.minimum is not None:
        allowed += f" of at least {field.minimum:g}" + (f" and at most {field.maximum:g}" if field.maximum else "")
    fits = (
        isinstance(value, int if whole else int | float)
        and not isinstance(value, bool)
        and (field.minimum is None or value >= field.minimum)  # NaN, of a query string, is not
        and (field.maximum is None or value <= field.maximum)
    )
    if not fits:
        raise _wrong(name, value, allowed)
    return value


def _check_filter(name: str, value: Any, limits: Limits) -> dict[str, Any]:
    if not isinstance(value, dict) or len(value) > limits.max_inputs:
        raise _wrong(name, value, f"an object of at most {limits.max_inputs} keys")
    for key, entry in value.items():
        if not is_utf8(key):
            raise _refused(name, f"has the key {quoted(key, 80)}, half of a surrogate pair; it must be valid Unicode")
        if not isinstance(entry, str | int | float | bool):
            raise _wrong(f"{name}.{shown(key, 80)}", entry, "a string, a number, true or false")
    return value


def _wrong(name: str, value: Any, allowed: str) -> ApiError:
    return _refused(name, f"is {quoted(value, 80)}; it must be {allowed}")


def _refused(name: str, why: str) -> ApiError:
    return ApiError(400, f"{name} {why}", name.partition("[")[0])


def to_json_schema(fields: Mapping[str, Field], limits: Limits) -> dict[str, Any]:
    """Return the JSON schema of a body. As in Python's clients, null stands for a field that is left out."""
    properties = {}
    for name, field in fields.items():
        entry = _value_schema(field, limits)
        if not field.required:
            entry = {"anyOf": [entry, {"type": "null"}]}
        properties[name] = entry | {"description": field.doc}
        if field.default is not None:
            properties[name]["default"] = field.default
    required = [name for name, field in fields.items() if field.required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _value_schema(field: Field, limits: Limits) -> dict[str, Any]:
    text: dict[str, Any] = {"type": "string"}
    if field.kind == "image":
        text |= {"pattern": "^data:image/[a-z0-9.+-]+;base64,[A-Za-z0-9+/]*={0,2}$", "examples": [EXAMPLE]}
    elif field.choices:
        text["enum"] = list(field.choices)
    elif field.kind in ("text", "texts"):
        text["maxLength"] = limits.max_text
    if field.kind in ("text", "image", "input"):
        return text
    if field.kind in ("texts", "inputs"):
        return {"anyOf": [text, {"type": "array", "items": text, "minItems": 1, "maxItems": _bound(field, limits)}]}
    if field.kind == "filter":
        value = {"type": ["string", "number", "boolean"]}
        return {"type": "object", "additionalProperties": value, "maxProperties": limits.max_inputs}
    bounds = {key: value for key in ("minimum", "maximum") if (value := getattr(field, key)) is not None}
    return {"type": field.kind, **bounds}
