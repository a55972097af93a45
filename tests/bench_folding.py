"""`zoo.fold` on whole models: is the folded one the same, how much smaller and how much faster, turn and turn about.

    python tests/bench_folding.py                                    # every MobileCLIP pair, batch 1, 2 threads
    python tests/bench_folding.py convnext_tiny RN50 --batch 8
    python tests/bench_folding.py 'MobileCLIP2-*' --rounds 0 --oracles build/oracles    # equality and parameters alone

Weights are those of an oracle case where there is one of the pair (oracles.py --full), which keep activations near 1
through any depth; others are drawn here (helpers.draw_weights). An error is max |folded − model| / max |model|, which
says something only where two inputs give different outputs: how different stands beside it. A ratio is the median over
rounds of the model's time / the folded one's.
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
HEADER = """| model | tower | parameters | folded | error | inputs differ by | batch | ms | folded, ms | ratio |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|"""


def towers(model):
    """{what it reads: tower} of a pair, or {"images": classifier}."""
    if hasattr(model, "image_encoder"):
        return {"images": model.image_encoder, "tokens": model.text_encoder}
    return {"images": model}


def inputs_of(what, model, batch):
    """A batch for a tower: images with structure at several scales, or captions of several lengths."""
    from oracle_case import draw_images, draw_tokens

    return draw_tokens(batch, 0) if what == "tokens" else draw_images(batch, model.input_shape[1:3], 0)


def create(name, oracles):
    """The model, with the weights of an oracle case of a folder, or drawn."""
    from helpers import draw_weights

    import zoo

    label = name.removeprefix("clip/")
    sources = ("open_clip", "apple") if label != name else ("timm",)
    cases = [Path(oracles, f"{source}-{label}", "model.safetensors") for source in sources]
    weights = next((path for path in cases if oracles and path.exists()), None)
    return zoo.create_model(name, weights=weights) if weights else draw_weights(zoo.create_model(name))


def compare(name, batch, threads, rounds, oracles):
    """Lines of the table for one model."""
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
        wrong, differ = error(other.predict_on_batch(two), expected), error(expected[:1], expected[1:])
        builders = {
            "model": lambda tower=tower, x=x: lambda: tower.predict_on_batch(x),
            "folded": lambda other=other, x=x: lambda: other.predict_on_batch(x),
        }
        times = list(timed_in_turn(builders, rounds).values())
        medians = [f"{1000 * percentile(seconds, 0.5):.1f}" if rounds else "–" for seconds in times]
        faster = f"{ratio(*times):.2f}×" if rounds else "–"
        counts = " | ".join(f"{one.count_params():,}" for one in (tower, other))
        same = f"{wrong:.1e} | {differ:.2f}"
        yield f"| {name} | {what} | {counts} | {same} | {batch} | {' | '.join(medians)} | {faster} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS, help="patterns of names, as zoo list takes them")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--oracles", default="", metavar="DIR", help="folder of cases whose weights to take")
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
