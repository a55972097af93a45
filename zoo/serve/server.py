"""`zoo serve`: the application in uvicorn, on sockets that cannot be held open by slow or silent clients."""

import asyncio
import ipaddress
import logging
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from zoo.serve.app import create_app
from zoo.serve.limits import Limits
from zoo.serve.model import open_model
from zoo.utils.files import open_file

MAX_HEADERS = 32 << 10  # bytes
MAX_TOKEN, MIN_TOKEN = 4096, 16  # characters
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def serve(
    model: str,
    *,
    index: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    token_file: str | None = None,
    allowed_host: Sequence[str] | None = None,
    runtime: str = "keras",
    precision: str = "float32",
    batch_size: int | None = None,
    max_wait_ms: float = 0.0,
) -> None:
    """Serve a model until SIGINT or SIGTERM, after which the requests in progress are still answered: `zoo serve`.

    Args:
        model: name or path of a pair or a classifier.
        index: folder of an index that was built with the pair.
        host: address to listen on; any but a loopback address needs a token.
        port: TCP port; 0 takes a free one.
        name: name of the model in requests; by default the file's name without its suffix.
        token_file: file with the bearer token that requests must send.
        allowed_host: host names to accept in the Host header besides localhost and IP addresses.
        runtime, precision: options of `ClipPipeline`.
        batch_size: largest batch of images; None measures which is fastest.
        max_wait_ms: milliseconds that the first input of a batch may wait for others.

    Raises:
        ValueError: another host without a token, a bad token file, an index of another model; further errors as of
            `zoo.load`.
    """
    token = None if token_file is None else _read_token(token_file)
    if token is None and not _is_loopback(host):
        raise ValueError(f"--host {host} can be reached by other machines, so it needs --token-file FILE")
    opened = open_model(model, runtime=runtime, precision=precision, batch_size=batch_size or "auto")
    limits = Limits()
    app = create_app(
        opened,
        index=index,
        name=name or Path(model).name.removesuffix(".safetensors"),
        limits=limits,
        token=token,
        allowed_hosts=tuple(allowed_host or ()),
        max_wait_ms=max_wait_ms,
    )
    run(app, limits, host, port)


def run(app: Any, limits: Limits, host: str, port: int) -> None:
    """Run an application until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    server = Server(configure(app, limits, host, port))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.run()
    except KeyboardInterrupt:  # uvicorn raises the signal again once everything is closed
        return


def configure(app: Any, limits: Limits, host: str = "127.0.0.1", port: int = 0) -> uvicorn.Config:
    """Return uvicorn's configuration: bounded connections, no websockets, no trust in forwarded headers."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=type("Bounded", (_BoundedProtocol,), {"limits": limits}),
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_keep_alive=int(limits.idle_seconds),
        timeout_graceful_shutdown=int(limits.deadline_seconds) + 1,
    )


class Server(uvicorn.Server):
    """uvicorn that prints the address of the page."""

    async def startup(self, sockets: Any = None) -> None:
        """Open the sockets and print the address of the page."""
        await super().startup(sockets)
        for listener in self.servers:
            for socket in listener.sockets[:1]:
                address, port = socket.getsockname()[:2]
                shown = f"[{address}]" if ":" in address else address
                shown = "127.0.0.1" if address in ("0.0.0.0", "::") else shown
                print(f"Open http://{shown}:{port} (Ctrl+C stops the service)", flush=True)


class _BoundedProtocol(H11Protocol):
    """A connection that is closed when its headers do not arrive, when its answer is not read, or when it idles while
    others need its place.

    uvicorn has no time-out of its own for what it receives (uvicorn#157).
    """

    limits: Limits = Limits()
    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Arm the time-out; if there are too many connections, close the one that has been idle longest."""
        super().connection_made(transport)
        self.since = self.loop.time()
        if len(self.connections) > self.limits.max_connections:
            idle = [other for other in self.connections if isinstance(other, _BoundedProtocol) and other.is_idle()]
            min(idle, key=lambda other: other.since, default=self).transport.abort()
        self._expect_headers()

    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Handle data; between two answers the time-out for headers runs."""
        super().data_received(data)
        if self.is_idle():
            self._expect_headers()
        else:
            self._headers_due = _cancelled(self._headers_due)

    def on_response_complete(self) -> None:
        """Count the connection as idle from now on."""
        self.since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time-outs."""
        self._headers_due, self._reading_due = _cancelled(self._headers_due), _cancelled(self._reading_due)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer is written."""
        super().pause_writing()
        if self._reading_due is None:
            self._reading_due = self.loop.call_later(self.limits.write_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._reading_due = _cancelled(self._reading_due)
        super().resume_writing()

    def _expect_headers(self) -> None:
        if self._headers_due is None and not self.transport.is_closing():
            self._headers_due = self.loop.call_later(self.limits.header_seconds, self.transport.abort)


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Stop a timer, if there is one; return what stands for none."""
    if timer is not None:
        timer.cancel()
    return None


def _is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read_token(path: str) -> str:
    """Return the token in a file: its only line.

    Raises:
        ValueError: not a regular file, or not 16 to 4,096 visible ASCII characters.
    """
    with open_file(path, max_bytes=MAX_TOKEN + 2) as file:
        data = file.read(MAX_TOKEN + 2).strip()
    if not MIN_TOKEN <= len(data) <= MAX_TOKEN or not all(33 <= byte <= 126 for byte in data):
        raise ValueError(f"{path} holds no token; it must be {MIN_TOKEN} to {MAX_TOKEN} visible ASCII characters")
    return data.decode("ascii")
