"""zoo.utils.env: the choice of the backend, the owners of our import names, messages of native libraries, memory."""

import importlib.machinery
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo.utils import env

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def installed(monkeypatch):
    """A function that sets which backends count as installed; KERAS_BACKEND is empty."""
    monkeypatch.setenv("KERAS_BACKEND", "")
    for name in ("TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS"):  # set by choose_backend, restored afterwards
        monkeypatch.setenv(name, "0")

    def install(*names):
        monkeypatch.setattr(env.importlib.util, "find_spec", lambda name: object() if name in names else None)

    return install


@pytest.fixture
def choose(monkeypatch):
    """choose_backend with a stand-in for Keras."""

    def run(name=None, runs_on=None, **options):
        fake = SimpleNamespace(backend=SimpleNamespace(backend=lambda: runs_on or os.environ["KERAS_BACKEND"]))
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "keras", fake)
            return env.choose_backend(name, **options)

    return run


def test_backends_are_listed_in_order_of_preference(installed):
    installed("torch", "tensorflow", "jax", "numpy")
    assert env.installed_backends() == ["jax", "tensorflow", "torch"]
    installed("torch", "tensorflow")
    assert env.installed_backends() == ["tensorflow", "torch"]


def test_onednn_is_enabled_unless_the_process_trains_or_the_variable_is_set(installed, choose, monkeypatch):
    installed("tensorflow")
    choose()
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"
    for trains, expected in ((True, None), (False, "1")):
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
        choose(trains=trains)
        assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == expected
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")


def test_the_argument_wins_over_the_environment_and_that_over_the_first_installed(installed, choose, monkeypatch):
    installed("tensorflow", "torch")
    assert choose() == "tensorflow"
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert choose() == "torch"
    assert choose("tensorflow") == "tensorflow"
    assert os.environ["KERAS_BACKEND"] == "tensorflow"


def test_no_backend(installed, choose):
    installed()
    with pytest.raises(ValueError, match=r"No backend is installed.*convnext-clip-zoo\[jax\]"):
        choose()


def test_unknown_backend(installed, choose, monkeypatch):
    installed("jax")
    with pytest.raises(ValueError, match="Unknown backend 'theano'. Allowed: jax, tensorflow, torch"):
        choose("theano")
    monkeypatch.setenv("KERAS_BACKEND", "numpy")
    with pytest.raises(ValueError, match="Unknown backend 'numpy'"):
        choose()


def test_backend_that_is_not_installed(installed, choose):
    installed("jax")
    with pytest.raises(ValueError, match=r"'torch' is not installed \(installed: jax\).*convnext-clip-zoo\[torch\]"):
        choose("torch")


def test_keras_already_runs_on_another_backend(installed, choose):
    installed("jax", "torch")
    with pytest.raises(ValueError, match="already runs on 'torch'.*'jax' needs a new process"):
        choose("jax", runs_on="torch")


@pytest.fixture
def layout(tmp_path, monkeypatch):
    """Our three packages as empty folders in tmp_path, with `env` in the zoo there."""
    for name in env.OWN_NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "elsewhere").mkdir()
    places = [str(tmp_path / "elsewhere"), str(tmp_path)]
    find = importlib.machinery.PathFinder.find_spec
    monkeypatch.setattr(env.importlib.util, "find_spec", lambda name: find(name, places))
    monkeypatch.setattr(env, "__file__", str(tmp_path / "zoo" / "utils" / "env.py"))
    importlib.invalidate_caches()
    return tmp_path


def test_all_names_are_ours(layout):
    assert env.foreign_owners() == []
    env.check_names()


def test_a_package_that_is_found_before_ours(layout):
    foreign = layout / "elsewhere" / "clip"
    foreign.mkdir()
    (foreign / "__init__.py").touch()
    assert env.foreign_owners() == [("clip", str(foreign / "__init__.py"))]
    with pytest.raises(ImportError, match="'clip' belongs to another package.*pip uninstall"):
        env.check_names()


def test_a_package_that_is_installed_over_ours(layout):
    for file in env.FOREIGN_FILES:
        (layout / "clip" / file).touch()
    assert env.foreign_owners() == [("clip", str(layout / "clip" / file)) for file in env.FOREIGN_FILES]


def test_a_name_that_no_package_has(layout):
    (layout / "convnext" / "__init__.py").unlink()
    (layout / "convnext").rmdir()
    assert env.foreign_owners() == [("convnext", "None")]


def test_import_zoo_names_the_other_package(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import zoo"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "ImportError: The import name 'clip' belongs to another package" in run.stderr
    assert env.REPAIR in run.stderr


def test_messages_of_a_library_are_suppressed(capfd):
    with env.quiet_stderr():
        os.write(2, b"a native library clears its throat\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"


def test_messages_of_a_library_that_is_imported_later_are_suppressed(tmp_path, monkeypatch, capfd):
    for name in ("noisy", "other"):
        (tmp_path / f"{name}.py").write_text("import os; os.write(2, b'a native library clears its throat')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [env.QuietImport("noisy"), *sys.meta_path])
    importlib.import_module("noisy")
    assert capfd.readouterr().err == ""
    importlib.import_module("other")
    assert capfd.readouterr().err == "a native library clears its throat"


def test_messages_of_a_library_are_printed_if_it_fails(capfd):
    with pytest.raises(RuntimeError, match="broken"), env.quiet_stderr():
        os.write(2, b"cannot open shared object\n")
        raise RuntimeError("broken")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "cannot open shared object\nafter\n"


FAULTS = """
import resource, sys, threading
from zoo.utils.env import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=lambda: b"x" * 200_000_000)
    thread.start()
    thread.join()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_that_a_thread_frees_is_reused_by_the_next():
    """A second 200 MB cause 48,829 page faults of 4 KB, or 96 of 2 MB, unless the memory was kept."""

    def faults(how):
        run = subprocess.run([sys.executable, "-c", FAULTS, how], cwd=ROOT, capture_output=True, text=True, check=True)
        return int(run.stdout)

    assert faults("keep") * 2 < faults("hand back")


def test_memory_settings_are_not_touched_without_glibc(monkeypatch):
    monkeypatch.setattr(env.sys, "platform", "darwin")
    assert env.keep_freed_memory() is False
    monkeypatch.setattr(env.sys, "platform", "linux")
    monkeypatch.setattr(env.ctypes, "CDLL", lambda _: object())
    assert env.keep_freed_memory() is False


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot restrict a process to cores")
def test_processes_that_are_started_share_the_cores():
    cores = os.sched_getaffinity(0)
    tell = [sys.executable, "-c", "import os; print(*sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS'])"]
    shares = []
    for number in range(processes := min(2, len(cores))):
        with env.share_of_cores(number, processes) as variables:
            words = subprocess.run(tell, env=os.environ | variables, capture_output=True, text=True, check=True).stdout
        *share, threads = map(int, words.split())
        assert threads == len(cores) // processes and len(share) >= threads
        shares += share
    assert sorted(shares) == sorted(cores) == sorted(os.sched_getaffinity(0))
    with env.share_of_cores(0, len(cores) + 1) as variables:
        assert os.sched_getaffinity(0) == cores and variables["NPROC"] == "1"


def test_threads_sleep_when_idle_unless_the_environment_says_otherwise(monkeypatch):
    for given, expected in (({}, {"GOMP_SPINCOUNT": "1000"}), *[({name: "7"}, {name: "7"}) for name in env.SPINNING]):
        monkeypatch.setattr(env.os, "environ", dict(given))
        env.let_threads_sleep()
        assert env.os.environ == expected
