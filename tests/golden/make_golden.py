"""Write the golden files: artefacts of an earlier commit, which later ones must load with the same result.

The files beside this script were written by commit 9eb57e8 on torch, with that commit's checkout on the path:

    KERAS_BACKEND=torch PYTHONPATH=path/to/9eb57e8 python tests/golden/make_golden.py

They are not written again: a new format or class gets further files, from a script of its own. `tests/test_golden.py`
imports the models, inputs and digests below, which therefore use nothing but public names.

The weights repeat a short random sequence, so that the archives compress well.
"""

import contextlib
import hashlib
import json
import shutil
import sqlite3
import sys
import tarfile
from pathlib import Path

import keras
import numpy as np

import clip
import convnext
import zoo
from convnext import AdamW, ResNetVariant, Variant

HERE = Path(__file__).resolve().parent
ROOT_MARK = "@ROOT@"  # stands for the folder of the files in an index's manifest
PERIOD = 1021  # a prime, so that rows of a matrix differ

ROW = Variant(depths=(1, 1), dims=(4, 8))
TEXT = clip.Text(8, 2, 1, context_length=10, vocabulary_size=50)
MIXER_TEXT = clip.Text(8, 2, 1, 10, 50, causal=False, mixer_kernel=5)
FULL_TEXT = clip.Text(8, 2, 1)  # the tokenizer's vocabulary
MCI = clip.MCi((1, 1, 1), (8, 16, 32), attention_stages=1, squeeze_excite=1)
CLASS_NAMES = ("cat", "dog", "bird")

CLASSIFIERS = {
    "convnext": lambda: convnext.create_convnext_v1(ROW, 3, (16, 16, 3), drop_path_rate=0.1, stem_stride=4),
    "convnextv2": lambda: convnext.create_convnext_v2(ROW, 3, (16, 16, 3), classifier_activation=None),
    "resnet": lambda: convnext.create_resnet(ResNetVariant((1, 1), (4, 8), stem_dim=4), 3, (32, 32, 3)),
}
PAIRS = {
    "pair-vit": lambda: clip.create_clip(clip.Pair(8, 16, clip.ViT(16, 1, 8, head_width=8), TEXT, "quick_gelu")),
    "pair-resnet": lambda: clip.create_clip(clip.Pair(8, 32, clip.ResNet((1, 1, 1, 1), 2), TEXT)),
    "pair-convnext": lambda: clip.create_clip(
        clip.Pair(8, 32, clip.ConvNeXt("convnextv2", "atto", "mlp"), TEXT), init_logit_bias=-10.0
    ),
    "pair-mci": lambda: clip.create_clip(clip.Pair(8, 64, MCI, MIXER_TEXT)),
}
OTHERS = {
    "zero-shot": lambda: clip.zero_shot_classifier(pair_with_full_vocabulary(), CLASS_NAMES),
    "folded-mci": lambda: zoo.fold(fill(PAIRS["pair-mci"]())),
    "folded-resnet": lambda: zoo.fold(fill(CLASSIFIERS["resnet"]())),
    "fcmae": lambda: convnext.create_fcmae(ROW, (16, 16, 3), decoder_dim=8, stem_stride=2, seed=3),
    "layers": lambda: stack_of_layers(),
    "heads": lambda: other_layers(),
}
MODELS = CLASSIFIERS | PAIRS | OTHERS
ARCHIVED = tuple(name for name in MODELS if name != "pair-convnext")  # the smallest of its table still has 3.4M weights
COMPILED = {  # name → (model, its optimizer); one step of training fills the optimizer's variables
    "compiled-convnext": ("convnext", "adamw"),
    "compiled-convnextv2": ("convnextv2", "guarded"),
    "compiled-pair": ("pair-vit", "default"),
    "compiled-fcmae": ("fcmae", "adamw"),
}
WEIGHTS_H5 = ("convnextv2", "pair-vit")
ONNX = ("convnextv2", "resnet", "pair-mci")
ONNX_PRECISIONS = ("float32", "int8")
TRAINING = {
    **{"batch_size": 4, "epochs": 2, "learning_rate": 1e-3, "warmup_steps": 1, "ema": 0.9},
    **{"context_length": 12, "save_every": 2, "log_every": 1, "threads": 1, "seed": 5},
}
CAPTIONS = tuple(f"a handwritten {word}" for word in ("zero", "one", "two", "three", "four", "five", "six", "seven"))
VECTORS, DIM = 96, 8


def stack_of_layers():
    """A model of the user's own, whose `.keras` archive files each layer under the name of its class."""
    from clip.layers import ClassEmbedding, LogitScaleConstraint, PositionalEmbedding, SelfAttention
    from clip.towers.branches import MobileOneConv2D, RepConditionalPosEnc, RepLargeKernelConv2D, RepMixer
    from convnext.layers import GRN, Conv2D, Dense, DepthwiseConv2D, LayerScale, Normal

    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            Conv2D(4, 2, 2, kernel_initializer=Normal(0.1)),
            DepthwiseConv2D(3, padding="same"),
            GRN(),
            GRN(),
            LayerScale(),
            MobileOneConv2D(3, filters=4),
            RepMixer(),
            RepLargeKernelConv2D(5),
            RepConditionalPosEnc(3),
            ClassEmbedding(),
            PositionalEmbedding(20),
            SelfAttention(2),
            Dense(2, kernel_constraint=LogitScaleConstraint()),
        ],
        name="stack",
    )


def other_layers():
    """The layers that CLIP and FCMAE make themselves, whose archives do not name them."""
    from clip.layers import LogitScale
    from convnext.fcmae import MaskToken

    maps, mask = keras.Input((2, 2, 4), name="maps"), keras.Input((2, 2), name="mask")
    x = keras.layers.Flatten()(MaskToken()([maps, mask]))
    y = keras.layers.Flatten()(maps)
    return keras.Model({"maps": maps, "mask": mask}, dict(zip("xy", LogitScale(2.5, -10.0)(x, y), strict=True)))


def pair_with_full_vocabulary():
    """A pair that captions can be given to; its 49,408 token embeddings repeat themselves."""
    return fill(clip.create_clip(clip.Pair(8, 16, clip.ViT(16, 1, 8, head_width=8), FULL_TEXT)))


def fill(model):
    """Give every weight values that depend on its place and shape alone."""
    values = np.random.default_rng(0).standard_normal(PERIOD).astype(np.float32)
    for place, weight in enumerate(model.weights):
        if "seed" in weight.path:
            continue
        shape, path = tuple(weight.shape), weight.path
        value = np.resize(np.roll(values, 7 * place), shape)
        if "variance" in path:
            value = 0.5 + np.abs(value)
        elif path.endswith("gamma"):
            value = 1 + np.clip(0.2 * value, -0.5, 0.5)
        elif path.endswith("logit_scale"):
            value = np.float32(2.5)
        elif len(shape) > 1 and "embedding" not in path:
            fan_in = np.prod(shape[:2]) if "depthwise" in path or shape[-1] == 1 else np.prod(shape[:-1])
            value = value * np.float32(fan_in**-0.5)
        else:
            value = np.float32(0.2) * value
        weight.assign(value)
    return model


def make_inputs(model, count=2):
    """Inputs of a model by its signature: float32 images and int32 tokens."""
    rng = np.random.default_rng(1)

    def draw(shape, integers):
        if integers:  # id 49 stands in for the end of the text; the towers then read the first position
            return rng.integers(1, 49, (count, shape[1] or 10)).astype(np.int32)
        return rng.standard_normal((count, *shape[1:])).astype(np.float32)

    if isinstance(model, convnext.FCMAE):
        height, width = model.grid
        mask = (np.arange(count * height * width) % 2).reshape(count, height, width).astype(np.float32)
        return {"images": draw(model.encoder.input_shape, False), "mask": mask}
    if isinstance(model.inputs, list) and len(model.inputs) > 1:
        return {name: draw(tensor.shape, name == "tokens") for name, tensor in model.input.items()}
    return draw(model.inputs[0].shape, False)


def outputs(model):
    """{name: float32 array} of the model's outputs in inference."""
    found = model.predict(make_inputs(model), verbose=0)
    found = found if isinstance(found, dict) else {"output": found}
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


def compile_model(model, optimizer):
    options = {} if isinstance(model, clip.CLIP | convnext.FCMAE) else {"loss": "mse"}
    if optimizer == "default":
        model.compile(**options)
    elif optimizer == "adamw":
        model.compile(AdamW(1e-3, weight_decay=0.1), **options)
    else:
        from zoo.training.optimizer import Guarded, create_optimizer

        factors = [0.5 + 0.5 * (i % 2) for i in range(len(model.trainable_variables))]
        inner = create_optimizer(1e-3, 10, warmup_steps=2, clip_norm=1.0)
        model.compile(Guarded(inner, initial_scale=1024.0, ema=0.9, factors=factors), **options)


def fit_once(model):
    """One step on fixed inputs; returns the loss before it."""
    inputs = make_inputs(model)
    has_own_loss = isinstance(model, clip.CLIP | convnext.FCMAE)
    targets = None if has_own_loss else np.zeros((2, *model.output_shape[1:]), np.float32)
    return float(model.fit(inputs, targets, batch_size=2, shuffle=False, verbose=0).history["loss"][0])


def digest(variables):
    """Digests of the variables' shapes, dtypes and bytes, in order, with spaces between them."""
    arrays = [keras.ops.convert_to_numpy(variable) for variable in variables]
    return " ".join(hashlib.sha256(f"{a.shape} {a.dtype}".encode() + a.tobytes()).hexdigest()[:16] for a in arrays)


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def album(count=8):
    """uint8 (N, 16, 16, 3): shapes drawn with NumPy alone."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:16, :16]
    images = []
    for _ in range(count):
        (cx, cy), radius = rng.uniform(4, 12, 2), rng.uniform(2, 6)
        inside = ((x - cx) ** 2 + (y - cy) ** 2 < radius**2)[..., None]
        images.append(np.where(inside, rng.integers(0, 256, 3), rng.integers(0, 256, 3)).astype(np.uint8))
    return np.stack(images)


def vectors():
    found = np.random.default_rng(3).standard_normal((VECTORS, DIM)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


# What is written. Imports of the zoo's inner modules are those of the commit in the docstring.


def write_models(folder, facts):
    expected = {}
    for name, build in MODELS.items():
        keras.utils.set_random_seed(0)
        model = fill(build())
        if name in CLASSIFIERS or name in PAIRS:
            zoo.save(model, folder / f"{name}.safetensors")
        if name in ARCHIVED:
            model.save(folder / f"{name}.keras")
        facts["weights"][name] = digest(model.weights)
        expected |= {f"{name}/{key}": value for key, value in outputs(model).items()}
        if name in WEIGHTS_H5:
            model.save_weights(folder / f"{name}.weights.h5")
    for name, (model_name, optimizer) in COMPILED.items():
        keras.utils.set_random_seed(0)
        model = fill(MODELS[model_name]())
        compile_model(model, optimizer)
        fit_once(model)
        model.save(folder / f"{name}.keras")
        facts["weights"][name] = digest(model.weights)
        facts["optimizer"][name] = digest(model.optimizer.variables)
        expected |= {f"{name}/{key}": value for key, value in outputs(model).items()}
        keras.utils.set_random_seed(0)
        expected[f"{name}/next loss"] = np.float32(fit_once(model))
    np.savez_compressed(folder / "outputs.npz", **expected)


def digest_onnx(facts, names=ONNX):
    from zoo.export import emit, to_proto

    for name in names:
        for precision in ONNX_PRECISIONS:
            proto = to_proto(emit(fill(MODELS[name]()), precision=precision))
            facts["onnx"][f"{name} {precision}"] = hashlib.sha256(proto.SerializeToString()).hexdigest()


def write_search(folder, facts):
    from PIL import Image

    from zoo import ClipPipeline
    from zoo.cli import main
    from zoo.evaluation.classifier import create_classifier
    from zoo.search import Index

    index = Index.build(
        vectors(),
        folder / "index",
        ids=[f"image {i}" for i in range(VECTORS)],
        metadata=[{"color": "red" if i % 2 else "blue", "number": i} for i in range(VECTORS)],
        model="f" * 64,
        facts={"note": "golden"},
    )
    index.remove([f"image {i}" for i in (3, 5, 90)])
    index.add(-vectors()[:4], ids=[f"later {i}" for i in range(4)], metadata=[{"color": "green"}] * 4)
    for kind in ("int8", "hnsw"):
        index.accelerate(kind)
    for dtype in ("float16", "int8"):
        Index.build(vectors(), folder / f"index-{dtype}", dtype=dtype)
    queries = np.random.default_rng(4).standard_normal((3, DIM)).astype(np.float32)
    expected = {"queries": queries}
    for name in ("index", "index-float16", "index-int8"):
        ids, scores = Index.open(folder / name).search(queries, 10)
        facts["search"][name] = ids
        expected[name] = scores

    for i, image in enumerate(album()):
        path = folder / "album" / ("left" if i < 4 else "right") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    pair = folder / "pair.safetensors"
    zoo.save(pair_with_full_vocabulary(), pair)
    pipeline = ClipPipeline(str(pair), cache=folder / "texts.sqlite")
    facts["fingerprint"] = pipeline.fingerprint
    expected["texts"] = pipeline.embed_texts(list(CAPTIONS))
    expected["images"] = pipeline.embed_images(list(album()))
    pipeline.cache.close()
    with contextlib.closing(sqlite3.connect(folder / "texts.sqlite")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in ("-wal", "-shm"):
        (folder / f"texts.sqlite{suffix}").unlink(missing_ok=True)
    create_classifier(pipeline, CAPTIONS).save(folder / "classifier.safetensors")
    source = str(folder / "album")
    assert main(["embed", source, "--model", str(pair), "--output", str(folder / "embedded")]) == 0
    later = folder / "later"
    shutil.move(folder / "album" / "right", later)
    assert main(["index", "build", source, "--model", str(pair), "--output", str(folder / "half")]) == 0
    shutil.move(later, folder / "album" / "right")
    for path in (folder / "half" / "manifest.json", folder / "embedded" / "manifest.json"):
        path.write_text(path.read_text().replace(str(folder), ROOT_MARK))
    for path in folder.rglob(".lock"):
        path.unlink()
    np.savez_compressed(folder / "outputs.npz", **expected)


def train(output, **options):
    """Train the golden pair on the album for four steps."""
    from zoo.data import from_arrays

    keras.utils.set_random_seed(0)
    return zoo.train(pair_with_full_vocabulary(), from_arrays(album(), CAPTIONS), output=output, **TRAINING, **options)


def write_run(folder, facts):
    """A finished run; without its last checkpoint, it stands at the second of four steps."""
    run = folder / "run"
    outcome = train(run)
    facts["run"] = [{k: v for k, v in row.items() if k != "seconds"} for row in outcome.rows if "loss" in row]
    shutil.copy(run / "model.safetensors", folder / "trained.safetensors")
    numbers = sorted(run.glob("checkpoints/checkpoint-*"))
    facts["checkpoint"] = numbers[0].name
    for path in (*numbers[1:], *run.glob("*")):
        if path.name != "checkpoints":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def registered_classes():
    """Return the names under which the project's classes are registered with Keras."""
    return sorted(name for name in keras.saving.get_custom_objects() if name.startswith("convnext_clip_zoo>"))


def pack(folder, path):
    """Write a compressed archive of a folder without times and owners."""
    with tarfile.open(path, "w:xz", preset=9) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                entry = tarfile.TarInfo(str(file.relative_to(folder)))
                entry.size = file.stat().st_size
                with open(file, "rb") as content:
                    archive.addfile(entry, content)


def main():
    facts = {"weights": {}, "optimizer": {}, "onnx": {}, "search": {}}
    work = HERE / "work"
    shutil.rmtree(work, ignore_errors=True)
    for name, write in (("models", write_models), ("search", write_search), ("run", write_run)):
        folder = work / name
        folder.mkdir(parents=True)
        write(folder, facts)
    pack(work, HERE / "golden.tar.xz")
    shutil.rmtree(work)
    digest_onnx(facts)
    facts["classes"] = registered_classes()
    (HERE / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
