"""Builds the wheel, installs it where the checkout cannot be seen, and uses it as a stranger would.

Nothing is downloaded: the fresh environment borrows all packages but ours from the one that runs the tests.
"""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCES = (".*", "build", "dist", "demo-output", "*.egg-info", "__pycache__")
OURS = ("convnext_clip_zoo*", "__editable__*", "*.pth")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def run(*command, cwd: Path) -> str:
    """Returns what a command prints, run without the variable that could lead it back to the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Builds from a copy: a build/ left in the checkout would hand old files on to the wheel."""
    place = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, place / "source", ignore=shutil.ignore_patterns(*NOT_SOURCES))
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", str(place / "source"), cwd=place)
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
    """Returns the folder of executables of a new environment that has the wheel."""
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place / "env", symlinks=os.name != "nt")
    borrowed = borrow_packages(place / "borrowed")
    (packages,) = (place / "env").rglob("site-packages")
    (packages / "borrowed.pth").write_text(f"{borrowed}\n")
    executables = place / "env" / ("Scripts" if os.name == "nt" else "bin")
    there = ("--python", str(executables / "python"))
    run(*PIP, *there, "install", "--no-deps", "--no-index", str(wheel), cwd=place)
    return executables


def borrow_packages(folder: Path) -> Path:
    """Fills a folder with links to everything importable but the project, however that is installed here."""
    folder.mkdir()
    ours = {path for entry in sys.path for pattern in OURS for path in Path(entry).glob(pattern)}
    for site in (Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")):
        for path in site.iterdir():
            link = folder / path.name
            if path not in ours and not link.exists():
                link.symlink_to(path, target_is_directory=path.is_dir())
    return folder


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"convnext", "clip", "zoo", "convnext_v1.py", "convnext_v2.py", info}
    assert {f"{package}/py.typed" for package in ("convnext", "clip", "zoo")} <= set(names)
    assert f"{info}/licenses/LICENSE" in names


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        path.relative_to(ROOT).as_posix()
        for package in ("convnext", "clip", "zoo")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    missing = sorted(sources - names)
    assert not missing, f"no package with __init__.py, or no pattern in package-data, covers {missing}"


def test_assets_and_aliases_come_along(fresh, tmp_path):
    code = """
import gzip, importlib.resources, pathlib, sys
import clip
from convnext_v1 import create_convnext_v1
from convnext_v2 import create_convnext_v2

assert create_convnext_v1.__name__ == "create_convnext_v1", create_convnext_v1
assert create_convnext_v2.__name__ == "create_convnext_v2", create_convnext_v2
assert pathlib.Path(clip.__file__).is_relative_to(sys.prefix), clip.__file__
try:
    clip.load("ViT-B/23")  # finds zoo by the entry point of the installed package
except ValueError as error:
    assert "available are RN50" in str(error), error
else:
    raise SystemExit("clip.load took a name that does not exist")
asset = importlib.resources.files("clip") / "assets" / "bpe_simple_vocab_16e6.txt.gz"
with importlib.resources.as_file(asset) as path, gzip.open(path, "rt", encoding="utf-8") as lines:
    print(sum(1 for line in lines))
"""
    assert int(run(str(fresh / "python"), "-c", code, cwd=tmp_path).splitlines()[-1]) > 48_000


def test_the_checkout_is_out_of_reach(fresh, tmp_path):
    printed = run(str(fresh / "python"), "-c", "import sys; print(*sys.path, sep='\\n')", cwd=tmp_path)
    assert str(ROOT) not in printed.splitlines()


@pytest.mark.slow
def test_doctor_finds_nothing_wrong(fresh, tmp_path):
    assert run(str(fresh / "zoo"), "doctor", cwd=tmp_path)
