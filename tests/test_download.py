"""Files from the hub are cached and verified, and each failure has its own message. Nothing uses the network."""

import builtins
import hashlib
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_cache import COMMIT

from zoo.weights import download as module
from zoo.weights.download import RECORD, fetch, fetch_file, recorded, verify

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "owner/name"
FILES = ("first.safetensors", "second.bin")


def digest(content):
    return hashlib.sha256(content).hexdigest()


def test_a_cached_file_is_found_without_the_network(hub_cache):
    path = hub_cache.put(REPOSITORY, "first.safetensors", b"weights")
    assert fetch(REPOSITORY, FILES) == path
    assert fetch(REPOSITORY, FILES, revision=COMMIT) == path


def test_the_digest_is_written_down_at_the_first_use_in_the_form_of_sha256sum(hub_cache):
    path = hub_cache.put(REPOSITORY, "first.safetensors", b"weights")
    assert recorded(path) is None
    fetch(REPOSITORY, FILES)
    record = path.with_name(path.name + RECORD)
    assert record.read_text() == f"{digest(b'weights')}  first.safetensors\n"
    assert recorded(path) == digest(b"weights")
    before = record.stat().st_mtime_ns
    fetch(REPOSITORY, FILES)
    assert record.stat().st_mtime_ns == before


def test_a_file_that_changed_after_its_first_use_is_refused(hub_cache, monkeypatch):
    path = hub_cache.put(REPOSITORY, "first.safetensors", b"weights")
    fetch(REPOSITORY, FILES)
    path.resolve().rename(path.resolve().with_name("etag"))  # so that the cache announces no digest
    path.unlink()
    path.write_bytes(b"weightz")
    with pytest.raises(ValueError, match=f"{digest(b'weightz')}.*{RECORD}.*{digest(b'weights')}.*delete it"):
        fetch(REPOSITORY, FILES)
    assert path.read_bytes() == b"weightz"


def test_a_file_cut_off_is_refused_at_its_first_use_by_what_the_hub_announced(hub_cache):
    path = hub_cache.put(REPOSITORY, "first.safetensors", b"weights")
    path.resolve().write_bytes(b"weig")
    with pytest.raises(ValueError, match=f"{digest(b'weig')}, and the hub's announcement says {digest(b'weights')}"):
        fetch(REPOSITORY, FILES)
    assert recorded(path) is None


def test_a_pinned_digest_holds_for_the_first_file(hub_cache):
    hub_cache.put(REPOSITORY, "first.safetensors", b"weights")
    assert fetch(REPOSITORY, FILES, digest=digest(b"weights"))
    with pytest.raises(ValueError, match=f"the table of published weights says {'0' * 64}"):
        fetch(REPOSITORY, FILES, digest="0" * 64)


@pytest.mark.parametrize("content", ["", "not a digest\n", "\xff\n"])
def test_a_damaged_record_is_no_permission(hub_cache, content):
    path = hub_cache.put(REPOSITORY, "first.safetensors", b"weights")
    path.with_name(path.name + RECORD).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="first used"):
        fetch(REPOSITORY, FILES)


def test_a_cache_that_cannot_be_written_is_no_obstacle(hub_cache, monkeypatch):
    path = hub_cache.put(REPOSITORY, "first.safetensors", b"weights")

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr("zoo.weights.download.atomic_write", refuse)
    assert fetch(REPOSITORY, FILES) == path
    assert recorded(path) is None


def test_the_second_file_is_taken_where_the_repository_lacks_the_first(hub_cache, monkeypatch):
    import huggingface_hub

    path = hub_cache.put(REPOSITORY, "second.bin", b"weights")

    def download(repository, name, **_):
        hub_cache.asked.append((repository, name))
        raise huggingface_hub.errors.EntryNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert fetch(REPOSITORY, FILES, digest="0" * 64) == path  # the digest is the first file's
    assert hub_cache.asked == [(REPOSITORY, "first.safetensors")]
    path.unlink()
    with pytest.raises(FileNotFoundError, match="owner/name has none of first.safetensors, second.bin"):
        fetch(REPOSITORY, FILES)


def test_without_network_the_second_file_is_taken_if_it_is_cached(hub_cache):
    path = hub_cache.put(REPOSITORY, "second.bin", b"weights")
    assert fetch(REPOSITORY, FILES) == path


def test_without_network_and_cache_one_line_says_both(hub_cache):
    with pytest.raises(ConnectionError) as error:
        fetch(REPOSITORY, FILES)
    assert str(error.value).count("\n") == 0
    for part in ("first.safetensors of owner/name", str(hub_cache.folder), "cannot be reached", "load the folder"):
        assert part in str(error.value)


def test_a_download_is_asked_of_the_hub_with_its_revision(hub_cache, monkeypatch, tmp_path):
    import huggingface_hub

    def download(repository, name, *, revision, local_files_only):
        hub_cache.asked.append((repository, name, revision, local_files_only))
        return str(hub_cache.put(repository, name, b"fresh"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    path = fetch(REPOSITORY, FILES, revision=COMMIT, digest=digest(b"fresh"))
    assert path.read_bytes() == b"fresh"
    assert hub_cache.asked == [(REPOSITORY, "first.safetensors", COMMIT, False)]


def failures():
    from huggingface_hub import errors

    response = SimpleNamespace(headers={}, request=None, status_code=404, url="https://huggingface.co")
    yield errors.RepositoryNotFoundError("404 Client Error.\nmore", response=response), FileNotFoundError, "not for you"
    yield errors.RevisionNotFoundError("404 Client Error.", response=response), FileNotFoundError, "not there"
    yield OSError(28, "No space left on device"), ConnectionError, "No space left"
    yield RuntimeError("Server disconnected"), ConnectionError, "could not be downloaded: Server disconnected."
    yield errors.LocalEntryNotFoundError("gone"), ConnectionError, "cannot be reached: gone."


@pytest.mark.parametrize("place", range(5))
def test_every_failure_is_one_line_of_ours(hub_cache, monkeypatch, place):
    import huggingface_hub

    error, kind, message = list(failures())[place]

    def download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(kind, match=message) as raised:
        fetch_file(REPOSITORY, "first.safetensors")
    assert "\n" not in str(raised.value)


def test_a_name_that_is_none_is_refused(hub_cache):
    with pytest.raises(ValueError, match="is not the name of a repository"):
        fetch("a/b/c", FILES)


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("huggingface_hub"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "convnext-clip-zoo\[hub\]"'):
        fetch(REPOSITORY, FILES)


def test_verify_gives_the_digest(tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    assert verify(tmp_path / "file") == digest(b"weights")


def test_import_needs_neither_the_library_nor_a_framework():
    code = "import sys, zoo.weights.download; assert not {'huggingface_hub', 'keras', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.fixture
def online(hub_cache, monkeypatch):
    """huggingface_hub as it is with a network; a download fails the test."""
    import huggingface_hub

    def download(*_, **__):
        raise AssertionError("asked for a download")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    module._connect.cache_clear()
    yield hub_cache
    module._connect.cache_clear()


@pytest.mark.parametrize("kind", ["refused", "silent", "proxy", "no name"])
def test_without_network_a_download_is_given_up_at_once(online, monkeypatch, kind):
    """Within seconds, not after the five attempts of huggingface_hub; what is cached is read as before."""
    import huggingface_hub

    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    endpoint = {"no name": "https://nowhere.invalid"}.get(kind, f"http://127.0.0.1:{port}")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    if kind == "proxy":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://huggingface.co")
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    if kind == "silent":
        monkeypatch.setattr(module, "REACHED_WITHIN", 0.1)
        monkeypatch.setattr(module.socket, "create_connection", lambda *_, **__: time.sleep(1) or socket.socket())
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match="is not in the cache .* cannot be reached: .*load the folder") as error:
        fetch(REPOSITORY, FILES)
    assert time.perf_counter() - start < 5 and "\n" not in str(error.value)
    online.put(REPOSITORY, "first.safetensors", b"weights")
    assert fetch(REPOSITORY, FILES).read_bytes() == b"weights"


def test_a_reachable_hub_is_asked(online, monkeypatch):
    import huggingface_hub

    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        with pytest.raises(ConnectionError, match="asked for a download"):
            fetch_file(REPOSITORY, "first.safetensors")
