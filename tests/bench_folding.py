"""Benchmark `zoo.fold` on whole models: error, parameters and speed-up, in alternating rounds.

    python tests/bench_folding.py                                    # every MobileCLIP pair, batch 1, 2 threads
    python tests/bench_folding.py convnext_tiny RN50 --batch 8
    python tests/bench_folding.py 'MobileCLIP2-*' --rounds 0 --oracles build/oracles    # error and parameters only

Weights come from an oracle case if there is one (oracles.py --full), else from helpers.draw_weights; both keep
activations near 1 at any depth. The error is max |folded − model| / max |model|. It is meaningful only if two inputs
give different outputs, so their difference is shown beside it. The ratio is the median over rounds of the model's time
divided by the folded model's.
"""

import argparse
import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
MODELS = ("MobileCLIP*",)
HEADER = """| model | tower | parameters | folded | error | difference of two inputs | batch | ms | folded, ms | ratio |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"""


def towers(model):
    """Return {input: tower} of a pair, or {"images": classifier}."""
    if hasattr(model, "image_encoder"):
        return {"images": model.image_encoder, "tokens": model.text_encoder}
    return {"images": model}


def inputs_of(what, model, batch):
    """Return a batch for a tower: images with structure at several scales, or captions of several lengths."""
    from oracle_case import draw_images, draw_tokens

    return draw_tokens(batch, 0) if what == "tokens" else draw_images(batch, model.input_shape[1:3], 0)


def create(name, oracles):
    """Return the model with the weights of an oracle case, or with drawn weights."""
    from helpers import draw_weights

    import zoo

    label = name.removeprefix("clip/")
    sources = ("open_clip", "apple") if label != name else ("timm",)
    cases = [Path(oracles, f"{source}-{label}", "model.safetensors") for source in sources]
    weights = next((path for path in cases if oracles and path.exists()), None)
    return zoo.create_model(name, weights=weights) if weights else draw_weights(zoo.create_model(name))


def compare(name, batch, threads, rounds, oracles):
    """Yield the table rows of one model."""
    import torch
    from bench_onnx import ratio, timed_in_turn

    import zoo
    from zoo.bench.parity import error
    from zoo.bench.timing import percentile

    torch.set_num_threads(threads)
    model = create(name, oracles)
    folded = zoo.fold(model)
    for (what, tower), other in zip(towers(model).items(), towers(folded).values(), strict=True):
        x, two = inputs_of(what, tower, batch), inputs_of(what, tower, 2)
        expected = tower.predict_on_batch(two)
        folding_error, difference = error(other.predict_on_batch(two), expected), error(expected[:1], expected[1:])
        builders = {
            "model": lambda tower=tower, x=x: lambda: tower.predict_on_batch(x),
            "folded": lambda other=other, x=x: lambda: other.predict_on_batch(x),
        }
        times = list(timed_in_turn(builders, rounds).values())
        medians = [f"{1000 * percentile(seconds, 0.5):.1f}" if rounds else "–" for seconds in times]
        faster = f"{ratio(*times):.2f}×" if rounds else "–"
        counts = " | ".join(f"{one.count_params():,}" for one in (tower, other))
        same = f"{folding_error:.1e} | {difference:.2f}"
        yield f"| {name} | {what} | {counts} | {same} | {batch} | {' | '.join(medians)} | {faster} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS, help="name patterns, as for zoo list")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--oracles", default="", metavar="DIR", help="folder of oracle cases to take weights from")
    options = parser.parse_args()
    import keras

    from zoo import list_models

    print(f"Keras on {keras.backend.backend()}\n\n{HEADER}")
    for name in [name for pattern in options.models for name in list_models(pattern)]:
        for line in compare(name, options.batch, options.threads, options.rounds, options.oracles):
            print(line, flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
