"""Files from huggingface.co: downloaded once into huggingface_hub's cache, and verified at every use.

The cache ($HF_HOME) is shared with every library that uses huggingface_hub, which also provides resuming, progress
bars, tokens and $HF_HUB_OFFLINE. It does not verify cached files, so a digest is recorded beside each file at its first
use, and a file that has changed since is refused.
"""

import contextlib
import functools
import re
import socket
import threading
import urllib.parse
import urllib.request
from pathlib import Path

from zoo.utils.files import atomic_write, sha256
from zoo.utils.text import quoted, shown

RECORD = ".sha256"  # appended to a file's name; the content has sha256sum's format
_DIGEST = re.compile("[0-9a-f]{64}")
REACHED_WITHIN = 4.0  # seconds to connect to the hub, or to the proxy before it
_PORTS = {"http": 80, "https": 443}


def fetch(repository: str, files: tuple[str, ...], *, revision: str | None = None, digest: str | None = None) -> Path:
    """Return the first of `files` that a repository has, downloaded unless it is cached, and verified.

    A cached file is used without a request to the network.

    Args:
        repository: "owner/name" on huggingface.co.
        files: names in order of preference.
        revision: commit, branch or tag; None for the newest.
        digest: SHA-256 that the first of `files` must have, or None.

    Returns:
        Path of the file in the cache.

    Raises:
        FileNotFoundError: the repository is not there, or has none of the files.
        ConnectionError: the file is not cached, and the hub cannot be reached.
        ImportError: huggingface_hub is missing.
        ValueError: the file does not have the digest it should have.
    """
    unreachable = None
    for name in files:
        try:
            path = fetch_file(repository, name, revision=revision, offline=unreachable is not None)
        except ConnectionError as error:
            unreachable = unreachable or error
            continue  # another of the files may be cached
        if path is not None:
            verify(path, digest if name == files[0] else None)
            return path
    raise unreachable or FileNotFoundError(f"{_url(repository, revision)} has none of {', '.join(files)}.")


def fetch_file(repository: str, name: str, *, revision: str | None = None, offline: bool = False) -> Path | None:
    """Return one file of a repository, unverified, or None if there is no such file; errors as of `fetch`."""
    hub = _hub()
    try:
        cached = hub.try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        if not (offline or hub.constants.HF_HUB_OFFLINE):
            _connect(hub.constants.ENDPOINT)
        return Path(hub.hf_hub_download(repository, name, revision=revision, local_files_only=offline))
    except (hub.errors.LocalEntryNotFoundError, _Unreachable) as error:
        raise ConnectionError(_not_cached(hub, repository, name, error)) from error
    except hub.errors.EntryNotFoundError:
        return None
    except (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError) as error:
        raise FileNotFoundError(
            f"{_url(repository, revision)} is not there, or not for you: {shown(_line(error))}"
        ) from error
    except hub.errors.HFValidationError as error:
        raise ValueError(f"{quoted(repository)} is not the name of a repository: {shown(_line(error))}") from error
    except Exception as error:  # a full disk, or whatever the library beneath raises when a connection breaks
        raise ConnectionError(
            f"{shown(name)} of {shown(repository)} could not be downloaded: {shown(_line(error))}"
        ) from error


class _Unreachable(OSError):
    """No connection to the hub."""


@functools.cache  # of successes: an exception is not kept
def _connect(endpoint: str) -> None:
    """Raise _Unreachable if no connection is made in time; huggingface_hub would retry five times first."""
    url = urllib.parse.urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    problems: list[OSError | None] = []

    def attempt():
        try:
            port = url.port or _PORTS.get(url.scheme, 80)
            socket.create_connection((url.hostname or "", port), timeout=REACHED_WITHIN).close()
            problems.append(None)
        except OSError as error:
            problems.append(error)

    thread = threading.Thread(target=attempt, daemon=True)  # looking up a name has no time limit of its own
    thread.start()
    thread.join(REACHED_WITHIN)
    if not problems:
        raise _Unreachable(f"{url.hostname} did not answer within {REACHED_WITHIN:g} s")
    if problems[0] is not None:
        raise _Unreachable(f"{url.hostname}: {problems[0]}") from problems[0]


def _hub():
    try:
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise ImportError(
            'Published weights are downloaded with huggingface_hub: pip install "convnext-clip-zoo[hub]". '
            "Without it, load a file or a folder that you have."
        ) from error
    return huggingface_hub


def _not_cached(hub, repository, name, error):
    cache, reason = hub.constants.HF_HUB_CACHE, _line(error.__cause__ or error)
    return (
        f"{name} of {repository} is not in the cache ({cache}), and huggingface.co cannot be reached: {reason} "
        "With a network the same call downloads it; without one, copy the repository's files here and load the folder."
    )


def _url(repository, revision):
    return f"https://huggingface.co/{repository}" + (f"/tree/{revision}" if revision else "")


def _line(error):
    """First line of an error's text, with a full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0].rstrip('. ')}."


def verify(path: Path, digest: str | None = None) -> str:
    """Return the SHA-256 of a cached file, after comparison with the known digests.

    These are `digest`, the one recorded at the first use, and the hub's, which names a large file's content in the
    cache.

    Raises:
        ValueError: one of them differs; the message has both digests.
    """
    actual, record = sha256(path), path.with_name(path.name + RECORD)
    known = _read_record(record)
    for source, expected in {
        "the table of published weights": digest,
        f"{record.name}, written when it was first used": known,
        "the hub's announcement": _announced(path),
    }.items():
        if expected and expected != actual:
            raise ValueError(
                f"{shown(path)} has SHA-256 {actual}, and {source} says {expected}. The file was damaged or changed: "
                "delete it, and it is downloaded again."
            )
    if known is None:
        with contextlib.suppress(OSError), atomic_write(record, "w") as file:  # a cache may be read-only
            file.write(f"{actual}  {path.name}\n")
    return actual


def recorded(path: Path) -> str | None:
    """Return the recorded digest of a cached file, or None."""
    return _read_record(path.with_name(path.name + RECORD))


def _read_record(record):
    """The digest in a record file, or None without one; an unreadable record counts as a difference."""
    try:
        return record.read_text(encoding="utf-8").split(maxsplit=1)[0].lower()
    except FileNotFoundError:
        return None
    except (IndexError, UnicodeDecodeError):
        return "nothing readable"


def _announced(path):
    """The hub's digest of a large file, which names its content in the cache; None for a small file."""
    name = path.resolve().name
    return name if path.is_symlink() and _DIGEST.fullmatch(name) else None
