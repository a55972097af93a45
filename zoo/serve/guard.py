"""What every request passes first: the Host header and the token are checked, headers added, requests counted."""

import hmac
import ipaddress
import json
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.responses import Response

from zoo.serve.limits import ApiError

HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
OPEN = ("/", "/health", "/ready", "/static/app.js", "/static/style.css")  # without a token
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
OTHER = "other"  # the label of unknown paths and methods
METHODS = ("GET", "HEAD", "POST")


class Metrics:
    """The metrics of one application, in a registry of their own. Labels come from fixed sets.

    Args:
        routes: the known paths.
    """

    def __init__(self, routes: tuple[str, ...]):
        self.registry = CollectorRegistry()
        self._routes = frozenset(routes)
        here = {"registry": self.registry}
        self._requests = Counter("zoo_requests", "Requests answered", ["route", "method", "status"], **here)
        self._seconds = Histogram("zoo_request_seconds", "Time to the answer", ["route"], buckets=SECONDS, **here)
        self._batches = Histogram("zoo_batch_size", "Inputs of a batch", ["kind"], buckets=BATCHES, **here)
        self._model = Counter("zoo_model_seconds", "Time of the model", ["kind"], **here)
        self.waiting = Gauge("zoo_waiting", "Inputs that wait for the model", ["kind"], **here)
        self.held = Gauge("zoo_held_bytes", "Bytes of the bodies of requests in progress", **here)
        self.in_progress = Gauge("zoo_requests_in_progress", "Requests in progress", **here)

    def batch(self, kind: str, count: int, seconds: float) -> None:
        """Count a batch."""
        self._batches.labels(kind).observe(count)
        self._model.labels(kind).inc(seconds)

    def request(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        route = "/v1/thumbnails" if path.startswith("/v1/thumbnails/") else path
        route = route if route in self._routes else OTHER
        self._requests.labels(route, method if method in METHODS else OTHER, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class Guard:
    """An ASGI application around another one.

    Args:
        app: the application.
        metrics: counts the requests.
        token: the bearer token that all but OPEN require; None for none.
        hosts: host names to accept in the Host header besides localhost and IP addresses. Others are refused because
            of DNS rebinding, by which an attacker's page reaches a local service under the attacker's own host name.
    """

    def __init__(self, app: Callable, metrics: Metrics, token: str | None, hosts: tuple[str, ...]):
        self._app, self._metrics = app, metrics
        self._token = None if token is None else f"Bearer {token}".encode()
        self._hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_with_headers(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = list(message.get("headers", ()))
                caches = any(name == b"cache-control" for name, _ in given)
                extra = HEADERS if caches else (*HEADERS, (b"cache-control", b"no-store"))
                message = {**message, "headers": [*given, *extra]}
            await send(message)

        try:
            error = self._refuse(scope)
            answer: Callable = self._app if error is None else refusal(error)
            await answer(scope, receive, send_with_headers)
        finally:
            self._metrics.request(scope["path"], scope["method"], status, time.perf_counter() - start)

    def _refuse(self, scope: dict) -> ApiError | None:
        headers = [value for name, value in scope["headers"] if name == b"host"]
        if len(headers) != 1 or not self._knows(headers[0].decode("latin-1")):
            return ApiError(421, "the Host header names another server; --allowed-host NAME accepts it")
        if self._token is None or scope["path"] in OPEN:
            return None
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1 or not hmac.compare_digest(given[0], self._token):
            return ApiError(401, "the token is missing or wrong; send it as Authorization: Bearer TOKEN")
        return None

    def _knows(self, host: str) -> bool:
        name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
        if name.lower() in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def refusal(error: ApiError, allow: str | None = None) -> Response:
    """Return an error as a response in JSON; `allow` are the methods that a path has."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if allow:
        headers["allow"] = allow
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    return Response(json.dumps(error.to_json()), error.status, headers, media_type="application/json")
