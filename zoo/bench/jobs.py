"""From a `Case` to a function to time: models with inputs, on a Keras backend, in torch, or in ONNX Runtime.

A call returns when its result is ready, on accelerators too. Inputs are already on the device, except for `predict`,
Keras training and ONNX Runtime, which take NumPy arrays as they do in use.
"""

import contextlib
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from zoo.bench import uses
from zoo.bench.cases import CAPTIONS, OURS, PEERS, SEARCHES, WHOLE, Case
from zoo.bench.machine import keras_device, on_cuda, torch_device, wait_for_cuda
from zoo.bench.timing import timed
from zoo.inference.forward import create_predictor, jit_forward, trace_forward
from zoo.inference.torch_graph import compile_graph, graph_of

SEED = 0
CLASSES = 1000
ZERO_SHOT_CLASSES = 100
START, END = 49406, 49407  # first and last token of a caption
COMPARED = 8  # rows of outputs, and directions
MATMUL_SECONDS = 0.2  # matrices grow until a product takes that long


@dataclass
class Job:
    """A case ready to run.

    Args:
        call: does the work once; returns the outputs if they are arrays of the backend.
        device: name of the device.
        parameters: trainable parameters of the model.
        settle: choices to make by measurement before the first call, or None.
        flops: FLOPs of one call, if the model tables do not know them.
    """

    call: Callable
    device: str
    parameters: int | None = None
    settle: Callable | None = None
    flops: int | None = None


def create_job(case: Case) -> Job:
    """Return the `Job` of a case.

    Raises:
        ValueError: an unsupported case. ImportError: the peer is not installed.
    """
    if case.part == "matmul":
        return _matmul(case)
    if case.part in CAPTIONS:
        return _create_tokenizing(case)
    if case.part == "pictures":
        return _create_pictures(case)
    inputs = _draw_inputs(case)
    if case.runtime == "onnx":
        return _onnx(case, inputs)
    if case.library != OURS and not PEERS[case.library].on_keras:
        return _torch(case, inputs)
    return _keras(case, inputs)


def _create_tokenizing(case: Case) -> Job:
    """Return the job that tokenises captions, cleaning included."""
    if case.library == OURS:
        from clip import tokenize

        return Job(uses.tokenize_call(lambda texts: tokenize(texts, truncate=True), case), "cpu")
    from zoo.bench import peers

    return Job(uses.tokenize_call(peers.create_tokenizer(), case), "cpu")


def _create_pictures(case: Case) -> Job:
    """Return the job of zero-shot classification from files to probabilities: class texts, decoding, both towers."""
    paths = uses.write_photographs(case.batch_size)
    if case.library != OURS:
        from zoo.bench import peers

        peer, call = peers.create_pictures(case, paths)
        images = _draw_inputs(replace(case, part="image", batch_size=min(case.batch_size, 8)))["images"]
        x = {"images": _torch_images(images)}
        return Job(call, torch_device(), _torch_parameters(peer), lambda: _choose_layout(peer, x))
    import keras

    keras.utils.set_random_seed(SEED)
    _set_precision(replace(case, dtype="float32"))  # the pipeline converts it to other precisions
    pair = create_ours(replace(case, part="pair"))
    return Job(uses.classify_call(pair, case, paths), keras_device(), _keras_parameters(pair))


def _keras_parameters(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def _torch_parameters(peer):
    return sum(weight.numel() for weight in peer.module.parameters())


def _torch_images(images):
    """Convert float32 (B, H, H, 3) to a torch tensor (B, 3, H, H) on torch's device."""
    import torch

    return torch.from_numpy(images).to("cuda" if torch.cuda.is_available() else "cpu").permute(0, 3, 1, 2)


def _draw_inputs(case: Case) -> dict[str, np.ndarray]:
    """Return those of {"images": float32 (B, H, H, 3), "tokens": int32 (B, 77), "labels": int32 (B,)} for the part."""
    rng = np.random.default_rng(SEED)
    images = rng.standard_normal((case.batch_size, case.image_size, case.image_size, 3), np.float32)
    tokens = rng.integers(1, START, (case.batch_size, 77), np.int32)  # captions of full length
    tokens[:, 0], tokens[:, -1] = START, END
    inputs = {"images": images, "tokens": tokens}
    if case.train and case.part == "classifier":
        inputs["labels"] = rng.integers(0, CLASSES, case.batch_size, np.int32)
    unused = {"classifier": "tokens", "image": "tokens", "zero-shot": "tokens", "text": "images"}.get(case.part)
    return {key: value for key, value in inputs.items() if key != unused}


def similarities(case: Case, outputs) -> list[float] | None:
    """Return cosines of the first output rows (B, D) with fixed random directions, the same in every process.

    They stand in for image–text similarities. None for peers, training and outputs that are not rows.
    """
    if case.library != OURS or case.train or case.part not in ("classifier", "image", "text", "zero-shot"):
        return None
    rows = outputs[0] if isinstance(outputs, list) else outputs
    rows = rows.detach().float().cpu() if hasattr(rows, "detach") else rows
    rows = np.asarray(rows)[:COMPARED].astype(np.float64)
    directions = np.random.default_rng(SEED).standard_normal((rows.shape[1], COMPARED))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True) * np.linalg.norm(directions, axis=0)
    return (rows @ directions / lengths).ravel().tolist()


# Keras: our models, and peers that run on Keras.


def _keras(case, inputs):
    import keras

    keras.utils.set_random_seed(SEED)
    _set_precision(case)
    model = create_ours(case) if case.library == OURS else _keras_peer(case)
    if case.runtime == "folded":
        from zoo.models.folding import fold

        model = fold(model)
    parameters = _keras_parameters(model)
    if case.train:
        call = _keras_step(model, case, inputs)
    elif case.part in SEARCHES:
        call = uses.search_call(model, case)
    else:
        x = {key: inputs[key] for key in ("images", "tokens") if key in inputs}
        x = x if len(x) > 1 else next(iter(x.values()))
        call = keras_forward(model, case, x)
    return Job(call, keras_device(), parameters)


def _set_precision(case: Case) -> None:
    """Set Keras' dtype policy, and whether float32 products may use TensorFloat-32."""
    import keras

    dtype = _allow_tf32(case)
    is_mixed = case.train and dtype != "float32"
    keras.config.set_dtype_policy(f"mixed_{dtype}" if is_mixed else dtype)


def _allow_tf32(case: Case) -> str:
    """Allow TensorFloat-32 products for dtype "tfloat32", forbid them otherwise; return the dtype of the arrays.

    Raises:
        ValueError: TensorFloat-32 without a CUDA device.
    """
    backend, allow = case.backend, case.dtype == "tfloat32"
    if allow and not on_cuda(backend):
        raise ValueError("dtype 'tfloat32' needs a CUDA device; none was found.")
    if backend == "torch":
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow
    elif backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(allow)
    elif on_cuda(backend):
        import jax

        jax.config.update("jax_default_matmul_precision", "tensorfloat32" if allow else "float32")
    return "float32" if allow else case.dtype


def create_ours(case: Case):
    """Return our model of a case with random weights: a classifier with logits, a tower, or a pair."""
    from zoo.models.names import find
    from zoo.models.registry import create_model

    entry = find(case.name)
    stem: dict[str, Any] = {"stem_stride": 4} if _has_stem_stride(entry) else {}  # as published, at every image size
    if case.part == "classifier":
        size = (case.image_size, case.image_size, 3)
        return create_model(case.name, input_shape=size, classifier_activation=None, **stem)
    pair = create_model(case.name, image_size=case.image_size, **stem)
    if case.part == "zero-shot":
        from clip import zero_shot_classifier

        return zero_shot_classifier(pair, [f"thing {i}" for i in range(ZERO_SHOT_CLASSES)])
    return {"image": pair.image_encoder, "text": pair.text_encoder}.get(case.part, pair)


def _has_stem_stride(entry):
    import clip

    if entry.family == "clip":
        return "stem_stride" in clip.tower_of(clip.VARIANTS[entry.label].image).options
    return entry.family.startswith("convnext")


def _keras_peer(case):
    from zoo.bench import peers

    return peers.create_keras(case)


def keras_forward(model, case: Case, x) -> Callable:
    """Return a function without arguments that runs a `keras.Model` on NumPy arrays in the case's mode."""
    import keras

    if case.mode in WHOLE:
        x = keras.tree.map_structure(lambda values: np.resize(values, (case.items, *values.shape[1:])), x)
        if case.mode == "predict":
            return lambda: model.predict(x, batch_size=case.batch_size, verbose=0)
        predictor = create_predictor(model, case.batch_size)
        return lambda: predictor(x)
    x = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    forward = {"jax": _jax_forward, "tensorflow": _tensorflow_forward, "torch": _torch_forward}[case.backend]
    return forward(model, x, case)


def _jax_forward(model, x, case):
    import jax

    weights = [[weight.value for weight in of] for of in (model.trainable_variables, model.non_trainable_variables)]

    def forward(trainable, frozen, x):
        return model.stateless_call(trainable, frozen, x, training=False)[0]

    run: Callable = jit_forward(model) if case.mode == "compiled" else forward
    return lambda: jax.block_until_ready(run(*weights, x))


def _tensorflow_forward(model, x, case):
    import tensorflow as tf

    def forward(x):
        return model(x, training=False)

    run: Callable = trace_forward(model, jit_compile=on_cuda("tensorflow")) if case.mode == "compiled" else forward
    return lambda: tf.nest.map_structure(lambda y: y.numpy(), run(x))


def _torch_forward(model, x, case):
    import torch

    def forward(x):
        return model(x, training=False)

    if case.mode == "compiled":  # our models as `zoo.create_predictor` compiles them, peers by torch.compile
        forward = compile_graph(graph_of(forward, x), x) if case.library == OURS else torch.compile(forward)

    def call():
        with torch.no_grad():
            y = forward(x)
        wait_for_cuda()
        return y

    return call


def _keras_step(model, case, inputs):
    import keras

    jit = True if case.mode == "compiled" and case.backend == "torch" else "auto"
    if case.part == "pair":
        model.compile("adamw", loss="clip", jit_compile=jit)
        return lambda: model.train_on_batch(inputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adamw", loss, jit_compile=jit, run_eagerly=case.mode == "eager" and case.backend != "torch")
    return lambda: model.train_on_batch(inputs["images"], inputs["labels"])


# torch: peers written in torch.


def _torch(case, inputs):
    import torch

    from zoo.bench import peers

    torch.manual_seed(SEED)
    dtype = getattr(torch, _allow_tf32(case))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = peers.create_torch(case)
    peer.module.to(device, torch.float32 if case.train else dtype).train(case.train)
    x = {key: torch.from_numpy(value).to(device) for key, value in inputs.items()}
    if "images" in x:
        x["images"] = x["images"].permute(0, 3, 1, 2).to(torch.float32 if case.train else dtype)
    step = _torch_step(peer, dtype, case.mode) if case.train else _torch_peer_forward(peer, case.mode)
    parameters = _torch_parameters(peer)
    settle = (lambda: _choose_layout(peer, x)) if "images" in x else None
    return Job(lambda: step(x), torch_device(), parameters, settle)


def _torch_peer_forward(peer, mode):
    import torch

    forward = torch.compile(peer.forward) if mode == "compiled" else peer.forward

    def step(x):
        with torch.inference_mode():
            forward(x)
        wait_for_cuda()

    return step


def _torch_step(peer, dtype, mode):
    """Return a step of AdamW on the peer's loss; below float32 with autocast, like Keras' mixed policies."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    optimizer = torch.optim.AdamW(peer.module.parameters(), lr=1e-3, weight_decay=4e-3)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    loss_of = torch.compile(peer.loss) if mode == "compiled" else peer.loss

    def step(x):
        optimizer.zero_grad()
        with torch.autocast(device, dtype) if dtype != torch.float32 else contextlib.nullcontext():
            loss = loss_of(x)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.item()

    return step


def _synchronised(result):
    """Return a torch result when its CUDA work is done."""
    wait_for_cuda()
    return result


def _choose_layout(peer, x):
    """Bring module and images into the memory format, contiguous or channels last, in which the peer is faster."""
    import torch

    images = x["images"]

    def seconds(layout):
        peer.module.to(memory_format=layout)
        x["images"] = images.contiguous(memory_format=layout)
        with torch.no_grad():
            peer.forward(x)
            return min(timed(lambda: _synchronised(peer.forward(x)))[0] for _ in range(2))

    layouts = (torch.contiguous_format, torch.channels_last)
    best = min(layouts, key=seconds)
    peer.module.to(memory_format=best)
    x["images"] = images.contiguous(memory_format=best)


# ONNX Runtime.


def _onnx(case, inputs):
    from zoo.export.runtime import start_session

    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        path = Path(folder) / "model.onnx"
        parameters = pool.submit(_write_onnx, case, path).result()  # its memory must not count as the runtime's
        session = start_session(path, threads=case.threads)
    names = [entry.name for entry in session.get_inputs()]
    feed = inputs if len(names) > 1 else dict(zip(names, inputs.values(), strict=True))
    device = "cpu" if session.get_providers()[0].startswith("CPU") else "cuda"
    return Job(lambda: session.run(None, feed), device, parameters)


def _write_onnx(case: Case, path: Path) -> int:
    """Write our model of a case as ONNX; return its number of trainable parameters."""
    import keras

    from zoo.export import export_onnx

    keras.utils.set_random_seed(SEED)
    model = create_ours(case)
    export_onnx(model, path, precision=case.dtype, verify=False)
    return _keras_parameters(model)


# Matrix products, which measure the machine's rate.


def _matmul(case):
    """Return the job of a product of square matrices that takes at least MATMUL_SECONDS or has 16384 rows."""
    _set_precision(case)
    side, call = 512, None
    enough = 0 if case.is_short else MATMUL_SECONDS
    while call is None or (side < 16384 and min(timed(call)[0] for _ in range(2)) < enough):
        side = side * 2 if call else side
        call = _product(case, np.random.default_rng(SEED).standard_normal((side, side), np.float32))
        call()
    return Job(call, keras_device(), flops=2 * side**3)


def _product(case, matrix):
    import keras

    dtype = "float32" if case.dtype == "tfloat32" else case.dtype
    a = keras.ops.cast(keras.ops.convert_to_tensor(matrix), dtype)
    if case.backend == "jax":
        import jax

        multiply = jax.jit(lambda a: a @ a)
        return lambda: jax.block_until_ready(multiply(a))
    if case.backend == "tensorflow":
        import tensorflow as tf

        return lambda: tf.linalg.matmul(a, a)[0, 0].numpy()
    import torch

    with torch.no_grad():
        a = a.detach()
    return lambda: _synchronised(torch.matmul(a, a))
