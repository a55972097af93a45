"""Kill campaign: `zoo index build` is killed with SIGKILL again and again, and the index must end complete.

    python tests/kill_campaign_index.py --kills 100 --files 10000

Every third index begins in the layout before the catalogue, with a third of the images, and small segments are merged
often, so kills also hit conversions and merges. One file in fifty is corrupt and one in fifty is a copy of another.
Half of the kills hit while a portion is written, the others at any time. The command is restarted until it finishes.
Then no image may be missing or duplicated, every vector must equal that of an undisturbed run, every digest must fit,
and each corrupt file and each copy must be listed with its reason. The encoder only sums pixels, so the time goes into
files, and no backend is needed.
"""

import argparse
import io
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from old_index import write_old  # noqa: E402

from zoo.data.preprocess import PreprocessSpec  # noqa: E402
from zoo.embeddings import store  # noqa: E402
from zoo.inference.encoder import Encoder  # noqa: E402
from zoo.search import Index, build, embed  # noqa: E402

SIDE, RARE = 8, 50  # pixels; one file in 50 is corrupt and one in 50 is a copy
PORTIONS = 20
SAVING = "saving"  # printed by the child before each portion


def main(arguments=None) -> dict | None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, metavar=("IMAGES", "INDEX"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        return run_child(*map(Path, options.child), portion=max(1, options.files // PORTIONS))
    figures = campaign(options.kills, options.files, random.Random(options.seed))
    print(json.dumps(figures, indent=1))
    return figures


def campaign(kills: int, files: int, rng: random.Random) -> dict:
    """Return the figures of indices whose builds were killed, in total, `kills` times, and resumed until complete."""
    figures = {"files": files, "kills": 0, "inside_saving": 0, "indices": 0, "whole": 0, "wrong": []}
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch, "images")
        expected = write_images(images, files, rng)
        start = time.perf_counter()
        finish(images, Path(scratch, "alone"), files)
        whole_run = time.perf_counter() - start
        alone = Index.open(Path(scratch, "alone"))
        figures |= {"images": len(expected["good"]), "left_out": len(expected["left_out"])}
        while figures["kills"] < kills:
            path = Path(scratch, f"index-{figures['indices']}")
            if figures["indices"] % 3 == 2:
                begin_old(alone, path)
            for _ in range(rng.randint(1, 10)):
                inside = rng.random() < 0.5
                delay = rng.uniform(0, 0.02) if inside else rng.uniform(0, whole_run)
                if figures["kills"] == kills or not killed(images, path, files, inside, delay, rng.randrange(4)):
                    break
                figures["kills"] += 1
                figures["inside_saving"] += inside
            finish(images, path, files)
            problem = examine(path, alone, expected)
            figures["indices"] += 1
            figures["whole"] += problem is None
            figures["wrong"] += [problem] if problem else []
    return figures


def begin_old(alone: Index, path: Path) -> None:
    """Write an index of the layout before the catalogue with a third of the images of a complete one."""
    ids = alone.ids[: len(alone) // 3]
    facts = {**alone.facts, "left_out": {}}
    vectors = np.stack([alone.vector(identity) for identity in ids])
    part = f"{path}-part"
    with Index.build(vectors, part, ids=ids, metadata=list(map(alone.metadata, ids)), model="sums", facts=facts) as new:
        write_old(new, path)


def write_images(folder: Path, count: int, rng: random.Random) -> dict:
    """Write files and return {"good": names, "left_out": {name: part of its reason}}."""
    expected = {"good": [], "left_out": {}}
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    for i in range(count):
        name = f"{i % 10}/{i:05d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.fromarray(pixels[i]).save(content, "PNG")
        data = content.getvalue()
        if i % RARE == 1:
            damaged = {b"": "an empty file", b"<html>not found</html>": "not an image", data[:50]: "cut off or damaged"}
            data, expected["left_out"][name] = list(damaged.items())[i // RARE % 3]
        elif i % RARE == 2 and i > RARE:
            data = (folder / f"{(i - 2) % 10}/{i - 2:05d}.png").read_bytes()
            expected["left_out"][name] = build.DUPLICATE
        else:
            expected["good"].append(name)
        (folder / name).write_bytes(data)
    return expected


def start_child(images: Path, path: Path, files: int) -> subprocess.Popen:
    command = [sys.executable, __file__, "--files", str(files), "--child", str(images), str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed(images: Path, path: Path, files: int, inside: bool, delay: float, saves: int) -> bool:
    """Start a build and kill it `delay` seconds after its (`saves` + 1)-th portion began, or after its start.

    False if the build ended before.
    """
    child = start_child(images, path, files)
    timer = threading.Timer(delay, child.send_signal, [signal.SIGKILL])
    if not inside:
        timer.start()
    for line in child.stdout:
        if inside and line.strip() == SAVING:
            saves -= 1
            if saves < 0:
                timer.start()
                inside = False
    code = child.wait()
    timer.cancel()
    child.stderr.close()
    return code == -signal.SIGKILL


def finish(images: Path, path: Path, files: int) -> None:
    """Run the build to its end."""
    child = start_child(images, path, files)
    _, error = child.communicate()
    if child.returncode:
        raise RuntimeError(f"the index could not be resumed: {error}")


def examine(path: Path, alone: Index, expected: dict) -> str | None:
    """Return what is wrong with an index, or None."""
    index = Index.open(path)
    if list(path.glob("*.json")):
        return "files of the earlier layout are left"
    if sorted(index.ids) != sorted(expected["good"]):
        missing, more = set(expected["good"]) - set(index.ids), set(index.ids) - set(expected["good"])
        return f"{len(missing)} missing, {len(more)} too many, {len(index.ids) - len(set(index.ids))} twice"
    left_out = index.info()["left_out"]
    if set(left_out) != set(expected["left_out"]):
        return f"{len(left_out)} listed as left out, {len(expected['left_out'])} expected"
    unlike = [f"{name}: {why}" for name, why in left_out.items() if expected["left_out"][name] not in why]
    different = [name for name in index.ids if not np.array_equal(index.vector(name), alone.vector(name))]
    index.verify()
    return f"{unlike[:3]} with another reason, {different[:3]} with another vector" if unlike or different else None


# The child.


class Sums:
    """A substitute for `ClipPipeline`: the embedding of an image is the sums of its rows."""

    fingerprint = "sums"

    def __init__(self, *_, **__):
        spec = PreprocessSpec(image_size=SIDE)
        self.encoder = Encoder(lambda batch: batch.sum(axis=2).reshape(len(batch), -1), None, spec, 3 * SIDE)


def run_child(images: Path, path: Path, portion: int) -> None:
    """Run `zoo index build`, which prints a line before it writes a portion."""
    add = Index.add

    def print_and_add(*arguments, **options):
        print(SAVING, flush=True)
        add(*arguments, **options)

    store.MOST_SMALL, store.MERGED = 5, 3
    Index.add, build.ClipPipeline, embed.PORTION = print_and_add, Sums, portion
    build.build_index(str(images), model="sums", output=str(path))


if __name__ == "__main__":
    main()
