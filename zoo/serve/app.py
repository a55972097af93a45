"""`create_app`: the routes of the service as an ASGI application."""

import asyncio
import base64
import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from zoo.inference.encoder import Encoder
from zoo.inference.pipeline import ClipPipeline
from zoo.serve.guard import Guard, Metrics, refusal
from zoo.serve.library import Library
from zoo.serve.limits import ApiError, Limits
from zoo.serve.model import ServedModel, encoder_of
from zoo.serve.openapi import describe
from zoo.serve.schema import check, fields_of, parse_body
from zoo.utils.text import quoted, shown

STATIC = Path(__file__).parent / "static"
PAGES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/static/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/static/style.css": ("style.css", "text/css; charset=utf-8"),
}
SMALL = 1 << 15  # bytes of a body that is parsed on the event loop; a larger one is parsed in a thread
FEW = 4  # embeddings of an answer that is written on the event loop; a larger one is written in a thread
DEFAULT_TOP = 5  # classes of a classifier
MAX_DIGITS = 18  # of the number of a thumbnail
log = logging.getLogger("zoo.serve")
Answer = Callable[[dict], Awaitable[dict]]


def create_app(
    model: ClipPipeline | Encoder,
    *,
    index: str | Path | None = None,
    name: str | None = None,
    limits: Limits | None = None,
    token: str | None = None,
    allowed_hosts: Sequence[str] = (),
    max_wait_ms: float = 0.0,
) -> Guard:
    """Return the service as an ASGI application. Only `zoo.serve.serve` adds time-outs for slow sockets.

    Args:
        model: a pair's pipeline, or a classifier of `zoo.serve.model.open_model`.
        index: folder of an index of the pair's image embeddings, to search.
        name: name of the model in requests; by default the model's own.
        limits: bounds of what is accepted.
        token: bearer token that requests must send; None for none.
        allowed_hosts: host names to accept in the Host header besides localhost and IP addresses.
        max_wait_ms: milliseconds that the first input of a batch may wait for others.

    Raises:
        ValueError: an index of another model, or an index for a classifier; FileNotFoundError: no index there.
    """
    service = Service(model, index, name or encoder_of(model).name, limits or Limits(), max_wait_ms / 1000)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.model.start()
        yield
        await asyncio.to_thread(service.model.close)

    application = Starlette(
        routes=service.routes(),
        lifespan=lifespan,
        exception_handlers={
            HTTPException: _http_error,
            ApiError: _api_error,
            ClientDisconnect: _gone,
            Exception: _unexpected,
        },
    )
    return Guard(application, service.metrics, token, tuple(allowed_hosts))


class Service:
    """The routes over one model and one index."""

    def __init__(
        self,
        model: ClipPipeline | Encoder,
        index: str | Path | None,
        name: str,
        limits: Limits,
        max_wait: float,
    ):
        self.limits, self._fields, self._held, self._active = limits, fields_of(limits), 0, 0
        self.library: Library | None = None
        if index is not None:
            if not isinstance(model, ClipPipeline):
                raise ValueError(f"{name} is a classifier; only a CLIP model searches an index")
            self.library = Library(index, model.fingerprint, limits.max_pixels)
        self._answers: dict[str, Answer] = {"/v1/embeddings": self.embed, "/v1/classify": self.classify}
        if isinstance(model, ClipPipeline):
            self._answers["/v1/rerank"] = self.rerank
        if self.library is not None:
            self._answers["/v1/search"] = self.search
        self._gets = {
            "/health": self.health,
            "/ready": self.ready,
            "/metrics": self.show_metrics,
            "/openapi.json": self.openapi,
            "/v1/models": self.models,
            "/v1/index": self.describe_index,
        }
        self.metrics = Metrics((*self._answers, *self._gets, *PAGES, "/v1/thumbnails"))
        self.metrics.held.set_function(lambda: self._held)
        self.metrics.in_progress.set_function(lambda: self._active)
        self.model = ServedModel(model, name, limits, max_wait, self.metrics.batch)
        for kind, queue in self.model.batcher.queues.items():
            self.metrics.waiting.labels(kind).set_function(functools.partial(len, queue))

    def routes(self) -> list[Route]:
        """Return the routes for Starlette."""
        routes = [Route(path, self._endpoint(path, answer), methods=["POST"]) for path, answer in self._answers.items()]
        routes += [Route(path, endpoint) for path, endpoint in self._gets.items()]
        routes += [Route(path, _page(*page)) for path, page in PAGES.items()]
        return [*routes, Route("/v1/thumbnails/{number}", self.thumbnail)]

    # Requests with a body.

    def _endpoint(self, path: str, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            if not self.model.ready:
                raise ApiError(503, "the model is not ready yet", retry_after=5)
            if self._active >= self.limits.max_requests:
                raise ApiError(429, f"{self._active} requests are in progress", retry_after=1)
            self._active += 1
            held = [0]
            try:
                body = await self._read(request, held)
                parse = functools.partial(self._parse, request, path, body)
                values = parse() if len(body) <= SMALL else await self.model.in_thread(parse)
                self._check_model(values)
                async with asyncio.timeout(self.limits.deadline_seconds):
                    result = await _unless_gone(request, answer(values))
                many = len(result.get("data", ())) > FEW
                return await self.model.in_thread(JSONResponse, result) if many else JSONResponse(result)
            except TimeoutError as error:
                seconds = f"{self.limits.deadline_seconds:g} s"
                raise ApiError(504, f"there was no answer within {seconds}", retry_after=1) from error
            finally:
                self._held -= held[0]
                self._active -= 1

        return respond

    async def _read(self, request: Request, held: list[int]) -> bytes:
        """Return the body, counted while it arrives."""
        length = request.headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > self.limits.max_body:
            raise ApiError(413, f"the body has {length[:20]} bytes; at most {self.limits.max_body} are allowed")
        chunks = []
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    held[0] += len(chunk)
                    self._held += len(chunk)
                    if held[0] > self.limits.max_body:
                        raise ApiError(413, f"the body has more than {self.limits.max_body} bytes")
                    if self._held > self.limits.max_held:
                        raise ApiError(429, "the requests in progress hold too much memory", retry_after=1)
                    chunks.append(chunk)
        except TimeoutError as error:
            raise ApiError(408, f"the body did not arrive within {self.limits.body_seconds:g} s") from error
        return b"".join(chunks)

    def _parse(self, request: Request, path: str, body: bytes) -> dict[str, Any]:
        """Return the checked fields of a JSON body; or of a raw image, with the other fields in the query string."""
        fields = self._fields[path]
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        takes_image = path != "/v1/rerank"
        if kind == "application/json":
            return check(parse_body(body), fields, self.limits)
        if not kind.startswith("image/") or not takes_image:
            allowed = "application/json" + (" or image/…" if takes_image else "")
            raise ApiError(415, f"Content-Type is {quoted(kind, 80)}; allowed are {allowed}")
        given: dict[str, Any] = {}
        for key, value in _query_of(request):
            field = fields.get(key)
            if field is not None and field.kind in ("texts", "inputs"):
                given.setdefault(key, []).append(value)
            else:
                given[key] = _number(value) if field and field.kind in ("integer", "number") else value
        target = "input" if path == "/v1/embeddings" else "image"
        values = check({**given, target: "data:image/raw;base64,"}, fields, self.limits)
        return {**values, target: [body] if target == "input" else body, "modality": "image"}

    def _check_model(self, values: dict) -> None:
        if values["model"] not in (None, self.model.name):
            message = f"model is {quoted(values['model'], 80)}; this service has {self.model.name}"
            raise ApiError(404, message, "model")

    async def embed(self, values: dict) -> dict:
        """`/v1/embeddings`, as OpenAI's, with `modality`."""
        if not self.model.is_pair:
            raise ApiError(400, f"{self.model.name} is a classifier; its outputs are at /v1/classify", "model")
        dim = self.model.encoder.dim
        if values["dimensions"] not in (None, dim):
            raise ApiError(400, f"dimensions is {values['dimensions']}; {self.model.name} has {dim}", "dimensions")
        embed = self.model.run_images if values["modality"] == "image" else self.model.embed_texts
        vectors = await embed(values["input"], "input")
        base64_wanted = values["encoding_format"] == "base64"
        data = [
            {
                "object": "embedding",
                "index": place,
                "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode() if base64_wanted else row.tolist(),
            }
            for place, row in enumerate(vectors)
        ]
        usage = {"prompt_tokens": 0, "total_tokens": 0}
        return {"object": "list", "data": data, "model": self.model.name, "usage": usage}

    async def classify(self, values: dict) -> dict:
        """`/v1/classify`: the probabilities of an image's classes, highest first."""
        labels, image = values["labels"], values["image"]
        if self.model.is_pair:
            if labels is None:
                raise ApiError(400, "labels is missing; a CLIP model needs the names of the classes", "labels")
            count = len(labels) * len(values["templates"])
            if count > self.limits.max_prompts:
                allowed = self.limits.max_prompts
                raise ApiError(400, f"labels times templates is {count}; at most {allowed} are allowed", "labels")
            scores = await self.model.classify(image, labels, values["templates"], values["activation"], "image")
            top = values["top"] or len(labels)
        else:
            if labels is not None:
                raise ApiError(
                    400, f"{self.model.name} is a classifier with classes of its own; leave out labels", "labels"
                )
            scores = (await self.model.run_images([image], "image"))[0]
            top = values["top"] or DEFAULT_TOP
        order = np.argsort(-scores, kind="stable")[:top]
        classes = [
            {"index": int(i), "label": labels[i] if labels else str(i), "probability": float(scores[i])} for i in order
        ]
        return {"object": "classification", "model": self.model.name, "classes": classes}

    async def rerank(self, values: dict) -> dict:
        """`/v1/rerank`: documents by their cosine with a query, highest first."""
        query, documents = values["query"], values["documents"]
        query_vector, vectors = await asyncio.gather(self._mixed([query], "query"), self._mixed(documents, "documents"))
        scores = vectors @ query_vector[0]
        order = np.argsort(-scores, kind="stable")[: values["top_n"]]
        results: list[dict[str, Any]] = [{"index": int(i), "relevance_score": float(scores[i])} for i in order]
        if values["return_documents"]:
            results = [{**result, "document": documents[result["index"]]} for result in results]
        return {"object": "rerank", "model": self.model.name, "results": results}

    async def _mixed(self, values: Sequence[str], field: str) -> np.ndarray:
        """Return the embeddings of texts and data URIs, float32 (N, D)."""
        vectors = np.empty((len(values), self.model.encoder.dim), np.float32)
        for embed, are_images in ((self.model.embed_texts, False), (self.model.run_images, True)):
            places = [i for i, value in enumerate(values) if value.startswith("data:") is are_images]
            if places:
                vectors[places] = await embed([values[i] for i in places], field)
        return vectors

    async def search(self, values: dict) -> dict:
        """`/v1/search`: the images of the index that match a text, an expression or an image best."""
        assert self.library is not None
        query, image = values["query"], values["image"]
        if (query is None) == (image is None):
            raise ApiError(400, "give either query or image", "query")
        if image is None:
            vector = await self.model.embed_query(query, "query")
        else:
            vector = (await self.model.run_images([image], "image"))[0]
        found = await self.model.in_thread(self._search, vector, values)
        return {"object": "search", "model": self.model.name, "results": found}

    def _search(self, vector: np.ndarray, values: dict) -> list[dict]:
        assert self.library is not None
        return self.library.current().search(vector, values["k"], values["where"], values["min_score"])

    # Requests without a body.

    async def health(self, _: Request) -> Response:
        """`/health`: the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        """`/ready`: every batch shape has been run, so that no request waits for a compilation."""
        if not self.model.ready:
            raise ApiError(503, "the model is not ready yet", retry_after=5)
        return JSONResponse({"status": "ready"})

    async def show_metrics(self, _: Request) -> Response:
        """`/metrics`, for Prometheus."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def openapi(self, _: Request) -> Response:
        """`/openapi.json`."""
        fields = {path: self._fields[path] for path in self._answers}
        return JSONResponse(describe(fields, self.limits, has_index=self.library is not None))

    async def models(self, _: Request) -> Response:
        """`/v1/models`, as OpenAI's."""
        encoder = self.model.encoder
        facts = {"id": self.model.name, "object": "model", "owned_by": "convnext-clip-zoo", "created": 0}
        facts |= {"kind": "clip" if self.model.is_pair else "classifier", "dimensions": encoder.dim}
        return JSONResponse({"object": "list", "data": [facts | {"image_size": list(encoder.spec.size)}]})

    async def describe_index(self, _: Request) -> Response:
        """`/v1/index`: the number of images, and what can be filtered by."""
        snapshot = await self.model.in_thread(self._library().current)
        filters = await self.model.in_thread(snapshot.filters)
        return JSONResponse({"object": "index", "images": len(snapshot.index), "filters": filters})

    async def thumbnail(self, request: Request) -> Response:
        """`/v1/thumbnails/{n}`: a small JPEG of the image with number n in the index."""
        number = request.path_params["number"]
        try:
            if not number.isascii() or not number.isdigit() or len(number) > MAX_DIGITS:
                raise ValueError(f"it must be 1 to {MAX_DIGITS} digits")
            async with asyncio.timeout(self.limits.deadline_seconds):
                snapshot = await self.model.in_thread(self._library().current)
                data = await self.model.draw(snapshot.thumbnail, int(number))
        except TimeoutError as error:
            raise ApiError(504, "there was no thumbnail in time", retry_after=1) from error
        except (KeyError, ValueError, OSError) as error:
            log.info("no thumbnail of %s: %s", shown(number, 40), shown(error))
            raise ApiError(404, f"there is no thumbnail of number {shown(number, 40)}") from error
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=600"})

    def _library(self) -> Library:
        if self.library is None:
            raise ApiError(404, "this service has no index")
        return self.library


async def _unless_gone(request: Request, answer: Awaitable[dict]) -> dict:
    """Return the answer; if the client disconnects first, cancel it and raise `ClientDisconnect`."""
    task = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for pending in (task, gone):
            if not pending.done():
                pending.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _query_of(request: Request) -> list[tuple[str, str]]:
    try:
        return parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True, max_num_fields=1000)
    except ValueError as error:
        raise ApiError(400, f"the query string: {error}") from error


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text[:40])
    return text


def _page(file: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    content = (STATIC / file).read_bytes()

    async def respond(_: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return respond


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return refusal(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path, status = quoted(request.scope["path"], 80), error.status_code
    reasons = {404: f"there is no {path}", 405: f"{shown(request.method, 20)} is not allowed on {path}"}
    return refusal(ApiError(status, reasons.get(status, error.detail)), (error.headers or {}).get("Allow"))


async def _gone(_: Request, error: Exception) -> Response:  # noqa: ARG001
    return Response(status_code=499)  # for the metrics; nobody receives it


async def _unexpected(request: Request, error: Exception) -> Response:
    log.error("%s failed", shown(request.scope["path"], 200), exc_info=error)
    return refusal(ApiError(500, "the request failed; the server's log has the reason"))
