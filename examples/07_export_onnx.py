"""Export a model to ONNX in three precisions and compare file size, error and latency.

python examples/07_export_onnx.py convnextv2_tiny
python examples/07_export_onnx.py demo-output/model.safetensors     # the demo's pair, as a zero-shot classifier
python examples/07_export_onnx.py --smoke
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import zoo
from clip import CLASS_NAMES, TEMPLATES
from zoo.export import OnnxModel


def seconds(predict, images, rounds=3):
    predict(images)  # warm-up
    start = time.perf_counter()
    for _ in range(rounds):
        predict(images)
    return (time.perf_counter() - start) / rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "model", nargs="?", default="convnext_tiny", help="model name or saved file (default: %(default)s)"
    )
    parser.add_argument("--output", help="folder for the files (default: a temporary folder)")
    parser.add_argument("--smoke", action="store_true", help="use the smallest ConvNeXt V2 and small images")
    options = parser.parse_args()

    if options.smoke:
        model = zoo.create_model("convnextv2_atto", input_shape=(32, 32, 3))
    elif Path(options.model).exists():
        model = zoo.load(options.model).model
    else:
        model = zoo.create_model(options.model)
    is_pair = hasattr(model, "text_encoder")
    part = {"part": "zero-shot", "class_names": CLASS_NAMES["digits"], "templates": TEMPLATES["digits"]}
    shape = (model.image_encoder if is_pair else model).input_shape[1:]
    images = np.random.default_rng(0).standard_normal((8, *shape), np.float32)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.output or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{model.name}: precision, MB, error against Keras, cosine, same top-1, ms for 8 images")
        for precision in ("float32", "float16", "int8"):
            path = folder / f"{model.name}-{precision}.onnx"
            report = zoo.export_onnx(model, path, precision=precision, **(part if is_pair else {}))
            took = seconds(OnnxModel(path).predict, images)
            print(
                f"{precision:<8} {report.bytes / 1e6:7.1f} {report.error:9.1e} {report.cosine:9.6f} "
                f"{report.top1:6.0%} {1000 * took:7.0f}"
            )


if __name__ == "__main__":
    main()
