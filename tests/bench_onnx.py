"""Benchmark our ONNX files against timm's export and timm in torch: same weights and ONNX Runtime, alternating rounds.

    python tests/bench_onnx.py                          # convnext_tiny and convnextv2_tiny, batch 1 and 8, 2 threads
    python tests/bench_onnx.py resnet50 --batch 8
    python tests/bench_onnx.py clip/ViT-B-32 clip/RN50  # the image towers of pairs, against open_clip
    python tests/bench_onnx.py --exports '*'            # export and verify every architecture
    python tests/bench_onnx.py --digits demo-output/model.safetensors    # zero-shot accuracy by precision

timm and open_clip, which has no exporter, are exported by `timm.utils.onnx`, opset 17. A ratio is the median over
rounds of theirs / ours.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from zoo.bench.timing import percentile, ratios, take_turn, take_turns, warm_up  # noqa: E402

MODELS = ("convnext_tiny", "convnextv2_tiny")


def write_files(name, folder):
    """Write the peer's random weights, its ONNX file, ours with the same weights, and our errors into a folder."""
    import torch
    from safetensors.torch import save_file
    from timm.utils.onnx import onnx_export

    import zoo

    torch.manual_seed(0)
    peer = create_peer(name)
    with torch.no_grad():  # so that gains and offsets matter
        for parameter in peer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    weights = folder / "weights.safetensors"
    save_file({key: value.contiguous() for key, value in peer.state_dict().items()}, weights)
    size = image_size(name)
    onnx_export(image_side(peer), str(folder / "theirs.onnx"), input_size=(3, size, size), batch_size=2, opset=17)
    del peer
    is_pair = name.startswith("clip/")
    options = {"activation": "gelu"} if is_pair else {"classifier_activation": None}  # open_clip's default
    options |= {"stem_stride": 4} if name.startswith("convnext") else {}
    model = zoo.create_model(name, weights=weights, **options)
    model = model.image_encoder if is_pair else model
    costs = {}
    for label, arguments in OURS.items():
        report = zoo.export_onnx(model, folder / f"{label}.onnx", **arguments)
        costs[f"ours, {label}"] = (report.error, report.cosine)
    (folder / COSTS).write_text(json.dumps(costs), encoding="utf-8")


def image_side(peer):
    return getattr(peer, "visual", peer)


COSTS = "costs.json"  # written last
OURS = {  # label: export options; the peers take NCHW
    "float32": {"precision": "float32"},
    "int8": {"precision": "int8"},
    "float32, NCHW": {"precision": "float32", "layout": "NCHW"},
}


def create_peer(name):
    if name.startswith("clip/"):
        import open_clip

        return open_clip.create_model(name.removeprefix("clip/")).eval()
    import timm

    return timm.create_model(name).eval()


def image_size(name):
    import zoo

    return zoo.model_info(name).input[0]


def candidates(name, folder, batch, threads):
    """Return {label: function that builds the function to time}."""
    import numpy as np
    import torch
    from safetensors.torch import load_file

    from zoo.export.runtime import start_session

    torch.set_num_threads(threads)
    size, library = image_size(name), "open_clip" if name.startswith("clip/") else "timm"
    images = np.random.default_rng(0).standard_normal((batch, size, size, 3), np.float32)
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    tensor = torch.from_numpy(channels_first)

    def onnx(file, x):
        session = start_session(folder / file, threads=threads)
        feed = {session.get_inputs()[0].name: x}
        return lambda: session.run(None, feed)

    def eager():
        peer = create_peer(name)
        peer.load_state_dict(load_file(folder / "weights.safetensors"))
        tower = image_side(peer)

        def run():
            with torch.inference_mode():
                return tower(tensor)

        return run

    return {
        "ours, float32": lambda: onnx("float32.onnx", images),
        "ours, int8": lambda: onnx("int8.onnx", images),
        "ours, float32, NCHW": lambda: onnx("float32, NCHW.onnx", channels_first),
        f"{library}, exported": lambda: onnx("theirs.onnx", channels_first),
        f"{library}, torch eager": eager,
    }


def bench(name, batches, threads, rounds, files=None):
    """Yield the table rows of one model; files that exist in the folder `files` are reused."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(files or temporary, name.replace("/", "-"))
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / COSTS).exists():
            write_files(name, folder)
        costs = json.loads((folder / COSTS).read_text(encoding="utf-8"))
        for batch in batches:
            runs = timed_in_turn(candidates(name, folder, batch, threads), rounds)
            ours, int8, _, export, _ = runs.values()
            for label, seconds in runs.items():
                cost = "{:.1e} | {:.5f}".format(*costs[label]) if label in costs else "– | –"
                yield (
                    f"| {name} | {batch} | {label} | {1000 * percentile(seconds, 0.5):.0f} "
                    f"| {ratio(seconds, ours):.2f}× | {ratio(seconds, int8):.2f}× | {ratio(export, seconds):.2f}× "
                    f"| {cost} |"
                )


def timed_in_turn(builders, rounds):
    """Build functions and time them in alternating rounds; return {name: seconds of its calls, by round}."""
    calls = {name: build() for name, build in builders.items()}
    for call in calls.values():
        warm_up(call)
    return take_turns({name: functools.partial(take_turn, call) for name, call in calls.items()}, rounds)


def ratio(theirs, ours):
    """Return the median over rounds of theirs / ours."""
    return statistics.median(ratios(theirs, ours))


HEADER = """| model | batch | | median ms | / ours float32 | / ours int8 | their export / it | error | cosine |
|---|--:|---|--:|--:|--:|--:|--:|--:|"""


def export_all(pattern, whole):
    """Export and verify every architecture that matches a pattern, at opset 20 and 17; yield table rows.

    Args:
        whole: millions of parameters up to which a model is exported whole at opset 20; a quarter of that at opset 17,
            which differs in GELU and reductions. Larger models are replaced by a narrow form with the same layer types.
    """
    import gc

    import export_cases
    from helpers import draw_weights

    import zoo

    for name in zoo.list_models(pattern):
        model, millions = None, zoo.model_info(name).parameters / 1e6
        for opset, limit in ((20, whole), (17, whole / 4)):
            is_whole = millions <= limit
            if model is None or is_whole != (millions <= whole):
                model = draw_weights(zoo.create_model(name) if is_whole else export_cases.narrow(name))
            yield f"| {name} | {'whole' if is_whole else 'narrow'} | {export_line(model, opset)} |"
            gc.collect()


def export_line(model, opset):
    """Export one file; return its cells of the table."""
    import onnx

    import zoo

    with tempfile.TemporaryDirectory() as folder:
        try:
            report = zoo.export_onnx(model, Path(folder, "model.onnx"), opset=opset)
        except ValueError as error:
            return f"{opset} | {str(error).splitlines()[0]} | | | | | "
        nodes = onnx.load(report.path, load_external_data=False).graph.node
    transposes = sum(node.op_type == "Transpose" for node in nodes)
    return (
        f"{opset} | {model.count_params() / 1e6:,.1f} | {report.bytes / 1e6:,.1f} | {len(nodes)} | {transposes} "
        f"| {report.error:.1e} | {sum(report.seconds):.0f}"
    )


def classify_digits(path):
    """Yield the zero-shot accuracy of the demo's pair in Keras and of an ONNX file in each precision, as table rows."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    import clip
    import zoo
    from zoo.export import OnnxModel

    data, pair = load_digits(), zoo.load(path)
    indices = np.arange(len(data.target))
    _, held_out = train_test_split(indices, test_size=360, stratify=data.target, random_state=0)
    digits = 255 - np.rint(data.images[held_out] * (255 / 16)).astype(np.uint8)
    images, labels = np.stack([pair.transform(digit) for digit in digits]), data.target[held_out]
    head = (clip.CLASS_NAMES["digits"], clip.TEMPLATES["digits"])
    scores = clip.zero_shot_classifier(pair.model, *head).predict(images, verbose=0)
    yield f"| Keras | – | {(scores.argmax(1) == labels).mean():.2%} | – | – |"
    part = {"part": "zero-shot", "class_names": head[0], "templates": head[1], "calibration": images}
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("float32", "float16", "int8"):
            file = Path(folder, f"{precision}.onnx")
            report = zoo.export_onnx(pair.model, file, precision=precision, **part)
            accuracy = (OnnxModel(file).predict(images).argmax(1) == labels).mean()
            errors = f"{report.error:.1e} | {report.cosine:.6f}"
            yield f"| {precision} | {report.bytes / 1e6:.1f} | {accuracy:.2%} | {errors} |"


EXPORTS_HEADER = """| architecture | | opset | million parameters | MB | nodes | Transposes | error | seconds |
|---|---|--:|--:|--:|--:|--:|--:|--:|"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--files", metavar="DIR", help="folder for the files, reused by the next run")
    parser.add_argument("--exports", metavar="PATTERN", help="export and verify all architectures that match")
    parser.add_argument(
        "--whole", type=float, default=200, metavar="M", help="use narrow models above M million parameters"
    )
    parser.add_argument("--digits", metavar="FILE", help="the demo's pair, evaluated in each precision")
    options = parser.parse_args()
    if options.digits:
        print("| | MB | accuracy | error | cosine |\n|---|--:|--:|--:|--:|")
        print("\n".join(classify_digits(options.digits)))
        return
    if options.exports:
        print(EXPORTS_HEADER)
        for line in export_all(options.exports, options.whole):
            print(line, flush=True)
        return
    from helpers import declare_torchvision_operators

    _ = declare_torchvision_operators()
    print(HEADER)
    for name in options.models:
        for line in bench(name, options.batch, options.threads, options.rounds, options.files):
            print(line, flush=True)


if __name__ == "__main__":
    main()
