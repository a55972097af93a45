"""The OpenAPI description of the service, made from the fields of its requests."""

from collections.abc import Mapping
from typing import Any

from zoo.serve.limits import Limits
from zoo.serve.schema import Field, to_json_schema

NUMBER, STRING, INTEGER = {"type": "number"}, {"type": "string"}, {"type": "integer"}
SUMMARIES = {
    "/v1/embeddings": "Embeddings of texts or images, in OpenAI's shape",
    "/v1/classify": "Probabilities of an image's classes, highest first",
    "/v1/rerank": "Documents by their cosine with a query, highest first",
    "/v1/search": "Images of the index that match a query best",
    "/health": "The process answers",
    "/ready": "Every batch shape has been compiled",
    "/metrics": "Metrics for Prometheus",
    "/v1/models": "The served model",
    "/v1/index": "The number of images, and the metadata that can be filtered by",
    "/v1/thumbnails/{number}": "A small JPEG of an image in the index",
}
REFUSALS = {
    "400": "A field is wrong; `param` names it",
    "401": "The token is missing or wrong",
    "404": "Another model, or nothing there",
    "405": "Another method",
    "408": "The body did not arrive in time",
    "413": "The body is too large",
    "415": "Another Content-Type",
    "421": "The Host header names another server",
    "429": "Too much waits; Retry-After says for how long",
    "503": "The model is not ready yet",
    "504": "No answer within the deadline",
}


def _object(**properties: dict) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: dict) -> dict[str, Any]:
    return {"type": "array", "items": items}


ERROR = _object(
    error=_object(message=STRING, type=STRING, param={"type": ["string", "null"]}, code=INTEGER),
)
ANSWERS = {
    "/v1/embeddings": _object(
        object=STRING,
        data=_list(_object(object=STRING, index=INTEGER, embedding={"anyOf": [_list(NUMBER), STRING]})),
        model=STRING,
        usage=_object(prompt_tokens=INTEGER, total_tokens=INTEGER),
    ),
    "/v1/classify": _object(
        object=STRING, model=STRING, classes=_list(_object(index=INTEGER, label=STRING, probability=NUMBER))
    ),
    "/v1/rerank": _object(object=STRING, model=STRING, results=_list(_object(index=INTEGER, relevance_score=NUMBER))),
    "/v1/search": _object(
        object=STRING,
        model=STRING,
        results=_list(
            _object(
                rank=INTEGER, id=STRING, number=INTEGER, score=NUMBER, metadata={"type": "object"}, thumbnail=STRING
            )
        ),
    ),
    "/health": _object(status=STRING),
    "/ready": _object(status=STRING),
    "/v1/models": _object(object=STRING, data=_list(_object(id=STRING, object=STRING))),
    "/v1/index": _object(object=STRING, images=INTEGER, filters={"type": "object"}),
}
POSTS = ("/v1/embeddings", "/v1/classify", "/v1/rerank", "/v1/search")
ONE_OF = {"/v1/search": ("query", "image")}  # fields of which a request has one
OTHER_TYPES = {"/metrics": "text/plain", "/v1/thumbnails/{number}": "image/jpeg"}


def describe(requests: Mapping[str, Mapping[str, Field]], limits: Limits, *, has_index: bool) -> dict[str, Any]:
    """Return the description.

    Args:
        requests: {path: fields} of the routes that take a body.
        has_index: whether there are the routes of an index.
    """
    paths: dict[str, Any] = {}
    for path, summary in SUMMARIES.items():
        operation = {"summary": summary, "responses": _responses(path)}
        if path in requests:
            schema = to_json_schema(requests[path], limits)
            if path in ONE_OF:
                schema["oneOf"] = [{"required": [name], "properties": {name: STRING}} for name in ONE_OF[path]]
            body = {"required": True, "content": {"application/json": {"schema": schema}}}
            paths[path] = {"post": {**operation, "requestBody": body}}
        elif path not in POSTS and (has_index or not path.startswith(("/v1/index", "/v1/thumbnails"))):
            paths[path] = {"get": operation}
    if "/v1/thumbnails/{number}" in paths:
        number = {"name": "number", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}
        paths["/v1/thumbnails/{number}"]["get"]["parameters"] = [number]
    return {
        "openapi": "3.1.0",
        "info": {"title": "convnext-clip-zoo", "version": "1"},
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}, {}],
    }


def _responses(path: str) -> dict[str, Any]:
    kind = OTHER_TYPES.get(path)
    content = {kind: {"schema": STRING}} if kind else {"application/json": {"schema": ANSWERS[path]}}
    refusals = {
        status: {"description": text, "content": {"application/json": {"schema": ERROR}}}
        for status, text in REFUSALS.items()
    }
    return {"200": {"description": "The answer", "content": content}, **refusals}
