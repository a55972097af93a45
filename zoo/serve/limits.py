"""What the service accepts, and the errors it answers with."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """The bounds of the service. A request beyond one is refused; nothing is cut silently.

    Args:
        max_body: bytes of a request's body.
        max_held: bytes of the bodies of all requests in progress.
        max_requests: requests in progress.
        max_inputs: texts or images of one request.
        max_prompts: labels times templates of one classification.
        max_text: characters of one text.
        max_pixels: pixels of one image, read from its header before it is decoded.
        max_decodes: images decoded at the same time.
        max_waiting_texts: texts that wait for the model, of all requests.
        max_waiting_images: images that wait for the model, of all requests.
        max_results: results of one search.
        max_connections: open connections; at one more, the longest idle one is closed.
        header_seconds: time for the headers of a request.
        body_seconds: time for the body of a request.
        deadline_seconds: time for the answer once the body is there.
        write_seconds: time in which a client must read what it is sent.
        idle_seconds: time that a connection stays open between requests.
    """

    max_body: int = 10 << 20
    max_held: int = 128 << 20
    max_requests: int = 256
    max_inputs: int = 64
    max_prompts: int = 1024
    max_text: int = 4096
    max_pixels: int = 50_000_000
    max_decodes: int = 2
    max_waiting_texts: int = 2048
    max_waiting_images: int = 256
    max_results: int = 200
    max_connections: int = 512
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    deadline_seconds: float = 30.0
    write_seconds: float = 30.0
    idle_seconds: float = 15.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{field.name}={value!r}; it must be a positive number")


class ApiError(Exception):
    """A request that is refused.

    Args:
        status: HTTP status.
        message: what was wrong, the value, what is allowed.
        field: the field at fault, such as "labels"; None if there is none.
        retry_after: seconds after which the request may succeed.
    """

    def __init__(self, status: int, message: str, field: str | None = None, *, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.field, self.retry_after = status, message, field, retry_after

    def to_json(self) -> dict:
        """Return the body of the answer, in the shape of OpenAI's errors."""
        kind = "invalid_request_error" if self.status < 429 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.field, "code": self.status}}
