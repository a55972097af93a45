"""Benchmark training steps against timm and open_clip in torch, and the input pipeline.

    PYTHONPATH=tests/peer_shim python tests/bench_training.py [--backend torch,jax,tensorflow] [--rounds 4]

Two cases with batches of 64: ConvNeXtV2-Atto at 64 x 64 pixels against timm's, and the demo's pair at 32 x 32 pixels
(stem stride 2, 77 tokens) against the same towers in open_clip. Our step is that of `zoo train`, with its optimizer;
the peer's uses AdamW, the same loss, and gradient clipping where ours clips. Each side is a separate process; rounds
alternate. The pipeline reads JPEG files of scikit-learn's two photographs (640 x 427) and augments them as training
does: "pipeline" only makes batches, "step and pipeline" also trains on them.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from zoo.bench.cases import Case
from zoo.bench.timing import ratios, take_turns
from zoo.bench.uses import write_photographs
from zoo.data import CLASSIFICATION, CONTRASTIVE, Batches, open_dataset
from zoo.data.pack import pack
from zoo.data.preprocess import PreprocessSpec
from zoo.utils.env import keep_freed_memory

BATCH = 64
STEPS, PIPELINE_STEPS = 4, 6  # per round; more with the pipeline, whose first batch cannot overlap with a step
CAPTION = "a photograph of a temple in China among trees, or of a yellow flower, taken on a clear day"
CASES = {
    "classifier": {"name": "convnextv2_atto", "peer": "timm", "image_size": 64, "stem_stride": 4},
    "pair": {"name": "clip/convnext_v2_atto", "peer": "open_clip", "image_size": 32, "stem_stride": 2},
}
STEP, PIPELINE, BOTH = "step", "pipeline", "step and pipeline"
COLUMNS = ("", "backend", "images/s, step", "speed-up over the peer", "range", PIPELINE, BOTH)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", default=",".join(CASES), help="default %(default)s")
    parser.add_argument("--backend", default="torch,jax,tensorflow", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=4, help="rounds per side (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="pipeline threads (default %(default)s)")
    parser.add_argument("--shards", action="store_true", help="read two tar shards instead of files and a table")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        return serve(*options.child, options.threads, options.shards)
    print(f"| {' | '.join(COLUMNS)} |", f"|---|---|{'--:|' * 5}", sep="\n", flush=True)
    for case in options.case.split(","):
        for line in measure(case, options.backend.split(","), options.rounds, options.threads, options.shards):
            print(line, flush=True)


def measure(case, backends, rounds, threads, shards):
    """Yield the table rows: the peer, then our backends."""
    peer = CASES[case]["peer"]
    sides = {peer: Side(case, peer, threads, shards)}
    try:
        sides |= {backend: Side(case, backend, threads, shards) for backend in backends}
        steps = take_turns({name: lambda side=side: side.turn(STEP) for name, side in sides.items()}, rounds)
        yield f"| {case} | {peer}, torch | {rate(steps[peer]):.1f} | 1 | | | |"
        for backend in backends:
            found = sorted(ratios(steps[peer], steps[backend]))
            rates = [rate([sides[backend].turn(job)]) for job in (PIPELINE, BOTH)]
            yield (
                f"| {case} | {backend} | {rate(steps[backend]):.1f} | **{statistics.median(found):.2f}** "
                f"| {found[0]:.2f} to {found[-1]:.2f} | {rates[0]:.1f} | {rates[1]:.1f} |"
            )
    finally:
        for side in sides.values():
            side.close()


def rate(turns):
    """Return images/s from rounds of seconds per step."""
    return BATCH / statistics.median(seconds for turn in turns for seconds in turn)


class Side:
    """The process of one side, warmed up and waiting for its next round."""

    def __init__(self, case, side, threads, shards):
        command = [sys.executable, __file__, "--child", case, side, "--threads", str(threads)] + ["--shards"] * shards
        backend = "torch" if side in {row["peer"] for row in CASES.values()} else side
        environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.turn(STEP)

    def turn(self, job):
        """Run one round; return [seconds per step]."""
        print(job, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("["):
                return json.loads(line)
        raise RuntimeError(f"{self.process.args} ended with code {self.process.wait()}")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# The child.


def serve(case, side, threads, shards):
    """Answer each line on stdin, the name of a job, with its seconds per step."""
    keep_freed_memory()  # as `zoo train` does; for the peer too, so that allocators are not compared
    with tempfile.TemporaryDirectory() as scratch:
        table = write(Path(scratch), BATCH, shards)
        jobs = create_ours(case, table, threads) if side != CASES[case]["peer"] else create_peer(case, table)
        jobs[STEP](STEPS)
        for line in sys.stdin:
            name = line.strip()
            steps = STEPS if name == STEP else PIPELINE_STEPS
            start = time.perf_counter()
            jobs[name](steps)
            print(json.dumps([(time.perf_counter() - start) / steps]), flush=True)


def write(folder, count, shards):
    """Write photographs and a CSV with captions and classes, or two shards of them; return the path."""
    write_photographs(count, folder)
    rows = [f'{path.relative_to(folder)},"{CAPTION}",{path.parent.name}' for path in sorted(folder.rglob("*.jpg"))]
    (folder / "train.csv").write_text("\n".join(["filepath,caption,class", *rows]))
    if not shards:
        return folder / "train.csv"
    pack(str(folder / "train.csv"), str(folder / "shards"), shard_size=count // 2, label_key="class")
    return folder / "shards" / "shard-{000000..000001}.tar"


def create_batches(case, table, threads, **options):
    """Return the batches of training."""
    from zoo.training.contrastive import Tokenize

    spec, options = PreprocessSpec(CASES[case]["image_size"]), {"batch_size": BATCH, "threads": threads, **options}
    if case == "pair":
        return Batches(open_dataset(table, needs="captions"), spec, augment=CONTRASTIVE, tokenize=Tokenize(), **options)
    column = "class" if table.suffix == ".csv" else None
    return Batches(open_dataset(table, needs="labels", label_key=column), spec, augment=CLASSIFICATION, **options)


class Repeat:
    """The same batch at every index: steps without a pipeline."""

    def __init__(self, batch):
        self.batch = batch

    def __getitem__(self, place):
        return self.batch


def create_ours(case, table, threads):
    """Return {job: function of the number of steps}, with the model and optimizer of `zoo train`."""
    from zoo.training.loop import Steps

    model = create_model(case)
    arrange = (lambda batch: batch) if case == "pair" else (lambda batch: (batch["images"], batch["label"]))

    def fit(source, steps):
        model.fit(Steps(source, range(steps), arrange), shuffle=False, verbose=0)

    def make(steps):
        with create_batches(case, table, threads, prefetch=0) as batches:
            for place in range(steps):
                batches[place]

    def both(steps):
        with create_batches(case, table, threads) as batches:
            fit(batches, steps)

    with create_batches(case, table, threads) as batches:
        repeated = Repeat(batches[0])
    return {STEP: lambda steps: fit(repeated, steps), PIPELINE: make, BOTH: both}


def create_model(case):
    """Return the model, compiled as `zoo train` does."""
    import keras

    import zoo
    from zoo.training.optimizer import create_optimizer
    from zoo.training.setup import compile_resumable

    keras.utils.set_random_seed(0)
    row, state = CASES[case], {"precision": "float32", "ema": None}
    size, stem_stride = row["image_size"], row["stem_stride"]
    if case == "pair":
        model = zoo.create_model(row["name"], image_size=size, stem_stride=stem_stride)
        compile_resumable(model, create_optimizer(1e-4, 1000, clip_norm=1.0), loss="clip", **state)
        return model
    shape = {"input_shape": (size, size, 3), "stem_stride": stem_stride, "classifier_activation": None}
    model = zoo.create_model(row["name"], num_classes=1000, **shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compile_resumable(model, create_optimizer(1e-4, 1000), loss=loss, **state)
    return model


def create_peer(case, table):
    """Return {"step": function of the number of steps} of the peer."""
    import torch

    from zoo.bench import jobs, peers

    row = CASES[case]
    part = "pair" if case == "pair" else "classifier"
    described = Case(row["name"], library=row["peer"], backend="torch", part=part, image_size=row["image_size"])
    peer = peers.create_torch(dataclasses.replace(described, batch_size=BATCH, train=True))
    stem = (peer.module.visual.trunk if case == "pair" else peer.module).stem[0]
    stem.stride, stem.padding = [(row["stem_stride"],) * 2, ((stem.kernel_size[0] - row["stem_stride"]) // 2,) * 2]
    peer.module.train()
    with create_batches(case, table, 1) as batches:
        batch = batches[0]
    x = {"images": torch.from_numpy(batch["images"].transpose(0, 3, 1, 2).copy())}
    x |= (
        {"tokens": torch.from_numpy(batch["tokens"])}
        if case == "pair"
        else {"labels": torch.from_numpy(batch["label"])}
    )
    jobs._choose_layout(peer, x)
    weights = list(peer.module.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.05)

    def step():
        optimizer.zero_grad()
        loss = peer.loss(x)
        loss.backward()
        if case == "pair":
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        return loss.item()

    return {STEP: lambda steps: [step() for _ in range(steps)]}


if __name__ == "__main__":
    main()
