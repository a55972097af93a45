"""A model behind a URL: the HTTP service of `zoo serve` and its page.

    app = zoo.serve.create_app(pipeline, index="photos.index")      # an ASGI application, for any server
    zoo.serve.serve("model.safetensors", index="photos.index")      # the same on 127.0.0.1:8000, with bounds on sockets

Importing this package needs none of what the extra `serve` installs.
"""

from typing import TYPE_CHECKING

from zoo.serve.limits import Limits
from zoo.utils.env import require_packages

if TYPE_CHECKING:
    from zoo.serve.app import create_app
    from zoo.serve.server import serve

__all__ = ["Limits", "create_app", "serve"]

_MODULE_OF = {"create_app": "zoo.serve.app", "serve": "zoo.serve.server"}


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    require_packages("zoo.serve", ("starlette", "uvicorn", "prometheus_client"), extras="serve")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
