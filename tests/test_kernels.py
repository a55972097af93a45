"""Every faster implementation of a kernel against the reference: values, gradients, and the backends' transforms."""

import functools
import json
import os
import subprocess
import sys
from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import ops

from convnext import Variant, create_convnext_v2, kernels
from convnext.kernels import reference, shared, torch_cpu

pytestmark = pytest.mark.backend

BACKEND = keras.backend.backend()
BATCH = 3
RESOLUTION = {"float32": 1e-5, "float16": 2**-8, "bfloat16": 2**-5}


class Call(NamedTuple):
    """A call of a kernel: the shape of x without the batch, those of the weights, and its options."""

    kernel: str
    x: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...] = ()
    options: dict = {}

    def __str__(self):
        words = [
            f"{key}={getattr(value, '__name__', value)}" for key, value in self.options.items() if key != "geometry"
        ]
        if geometry := self.options.get("geometry"):
            words += [geometry.padding, f"/{geometry.strides[0]}"]
        return " ".join([self.kernel, "×".join(map(str, self.x)), *words])

    def function(self):
        return functools.partial(getattr(kernels, self.kernel), **self.options)

    def arrays(self, rng, batch=BATCH):
        return [rng.standard_normal(shape).astype("float32") for shape in ((batch, *self.x), *self.weights)]


SAME = kernels.Geometry(padding="same")
HALVES = kernels.Geometry(strides=(2, 2))
CALLS = [
    Call("grn", (5, 3, 6), ((6,), (6,))),
    Call("affine", (5, 4), ((4, 7), (7,)), {"activation": keras.activations.gelu}),
    Call("affine", (3, 5, 7), ((7, 3), (3,)), {"activation": keras.activations.tanh}),
    Call("affine", (3, 5, 7), ((7, 3),)),
    Call("conv2d", (9, 8, 3), ((2, 2, 3, 5), (5,)), {"geometry": HALVES}),  # the last row is not a whole patch
    Call("conv2d", (5, 3, 4), ((1, 1, 4, 3), (3,)), {"geometry": HALVES._replace(padding="same")}),
    Call("conv2d", (5, 7, 4), ((3, 3, 2, 6), (6,)), {"geometry": SAME}),  # two groups
    Call("conv2d", (5, 7, 4), ((3, 3, 4, 6),), {"geometry": HALVES._replace(padding="same")}),
    Call("depthwise_conv2d", (9, 5, 4), ((7, 7, 4, 1), (4,)), {"geometry": SAME}),
    Call("depthwise_conv2d", (2, 17, 3), ((3, 3, 3, 1),), {"geometry": SAME}),
    Call("attention", (5, 3, 2, 4), (), {"causal": True}),
    Call("attention", (5, 3, 2, 4)),
]
FIRST = {call.kernel: call for call in reversed(CALLS)}.values()
each_call = pytest.mark.parametrize("call", CALLS, ids=str)
each_kernel = pytest.mark.parametrize(
    "call", [pytest.param(call, marks=() if call in FIRST else pytest.mark.wide) for call in CALLS], ids=str
)


@pytest.fixture(autouse=True)
def every_form(monkeypatch):
    """torch's products by oneDNN, on Intel's processors too, where MKL is faster."""
    if BACKEND != "torch":
        yield
        return
    monkeypatch.setattr(torch_cpu, "is_intel", lambda: False)
    torch_cpu.onednn_rows.cache_clear()
    yield
    torch_cpu.onednn_rows.cache_clear()


def derivatives(function, arrays, dtype="float32", second=False):
    """Return [outputs, gradient of each argument, …] of a weighted sum, with `second` those of Σ gradient² too."""
    arrays = [ops.cast(array, dtype) for array in arrays]
    found = {"jax": _by_jax, "tensorflow": _by_tensorflow, "torch": _by_torch}[BACKEND](function, arrays, second)
    assert keras.backend.standardize_dtype(found[0].dtype) == dtype
    return [ops.convert_to_numpy(ops.cast(value, "float32")) for value in found]


def weighted(outputs):
    return ops.sum(ops.cast(ops.sin(ops.cast(ops.arange(outputs.shape[-1]), "float32")), outputs.dtype) * outputs)


def _by_jax(function, arrays, second):
    import jax

    every = tuple(range(len(arrays)))

    @jax.jit
    def compute(*arrays):
        found = [function(*arrays), *jax.grad(lambda *a: weighted(function(*a)), every)(*arrays)]
        if second:
            slope = jax.grad(lambda *a: weighted(function(*a) ** 2), every)
            found += jax.grad(lambda *a: sum(ops.sum(gradient**2) for gradient in slope(*a)), every)(*arrays)
        return found

    return compute(*arrays)


def _by_tensorflow(function, arrays, second):
    import tensorflow as tf

    if 0 in arrays[0].shape:  # the gradients of sums over no elements end the process
        return [tf.function(function)(*arrays)]

    @tf.function
    def compute(*arrays):
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            outputs = function(*arrays)
            total = weighted(outputs)
        found = [outputs, *tape.gradient(total, arrays)]
        if second:
            with tf.GradientTape() as outer:
                outer.watch(arrays)
                with tf.GradientTape() as inner:
                    inner.watch(arrays)
                    total = weighted(function(*arrays) ** 2)
                squares = sum(ops.sum(gradient**2) for gradient in inner.gradient(total, arrays))
            found += outer.gradient(squares, arrays)
        return found

    return compute(*arrays)


def _by_torch(function, arrays, second):
    import torch

    arrays = [array.detach().requires_grad_() for array in arrays]
    outputs = function(*arrays)
    found = [outputs, *torch.autograd.grad(weighted(outputs), arrays)]
    if second:
        slopes = torch.autograd.grad(weighted(function(*arrays) ** 2), arrays, create_graph=True)
        found += torch.autograd.grad(sum((slope**2).sum() for slope in slopes), arrays)
    return found


def assert_close(found, expected, tolerance=1e-5):
    for own, other in zip(found, expected, strict=True):
        assert own.shape == other.shape
        if own.size:
            np.testing.assert_allclose(own, other, rtol=tolerance, atol=tolerance * (1 + np.abs(other).max()))


def both(call, compute):
    """Return what `compute` gives with the faster implementations, and with the reference alone.

    torch's own attention has neither second nor forward derivatives; ours is compared with matrix products.
    """
    found = compute(call.function())
    if call.kernel == "attention" and BACKEND == "torch":
        return found, compute(functools.partial(shared.attend_heads_first, **call.options))
    with kernels.use_reference():
        return found, compute(call.function())


@each_kernel
@pytest.mark.parametrize(
    "dtype, batch",
    [
        ("float32", 0),
        pytest.param("float32", 1, marks=pytest.mark.wide),
        ("float16", BATCH),
        pytest.param("bfloat16", BATCH, marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_are_the_references(call, dtype, batch, rng):
    arrays = call.arrays(rng, batch)
    if (BACKEND, call.kernel, dtype) == ("jax", "attention", "float16"):  # JAX's own raises on a CPU
        exact = derivatives(call.function(), arrays)
        return assert_close(derivatives(call.function(), arrays, dtype), exact, 4 * RESOLUTION[dtype])
    assert_close(*both(call, lambda f: derivatives(f, arrays, dtype)), 4 * RESOLUTION[dtype])


@each_call
def test_derivatives_of_both_orders_are_the_references(call, rng):
    arrays = call.arrays(rng)
    found, expected = both(call, lambda f: derivatives(f, arrays, second=True))
    first = 1 + len(arrays)
    assert_close(found[:first], expected[:first], 4e-5)
    assert_close(found, expected, 1e-4)


@pytest.mark.only("torch")
@each_call
def test_values_without_gradients_are_the_references(call, rng):
    """torch has forms of its own for inference; 8 rows and more go another way than fewer."""
    for batch in (1, 8):
        arrays = [ops.convert_to_tensor(array) for array in call.arrays(rng, batch)]
        found, expected = both(call, lambda f, arrays=arrays: ops.convert_to_numpy(f(*arrays)))
        assert_close([found], [expected])


@pytest.mark.only("torch")
@each_call
def test_inputs_that_are_not_contiguous(call, rng):
    import torch

    x, *weights = map(torch.tensor, call.arrays(rng))
    reversed_memory = x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))
    spread = torch.stack([x, x], dim=-1)[..., 0]
    repeated = x[:1].expand(x.shape)
    for given in (reversed_memory, spread, repeated):
        assert not given.is_contiguous()
        found, expected = both(call, lambda f, given=given: f(given, *weights).numpy())
        assert_close([found], [expected])


@pytest.mark.only("torch")
@each_call
def test_torchs_transforms(call, rng):
    """grad, jvp, vmap and dual numbers give the reference's derivatives; none of them is silently zero."""
    import torch
    from torch.autograd import forward_ad

    arrays = tuple(map(torch.tensor, call.arrays(rng, 8)))
    tangents = tuple(map(torch.tensor, call.arrays(rng, 8)))
    stacked = torch.stack([arrays[0], 2 * arrays[0]])

    def compute(f):
        gradient = torch.func.grad(lambda *a: weighted(f(*a)), tuple(range(len(arrays))))(*arrays)
        outputs, pull_back = torch.func.vjp(f, *arrays)
        forward = torch.func.jvp(f, arrays, tangents)
        with forward_ad.dual_level():
            last = forward_ad.make_dual(arrays[-1], tangents[-1])
            dual = forward_ad.unpack_dual(f(*arrays[:-1], last)).tangent
        hessian = torch.func.jvp(torch.func.grad(lambda *a: weighted(f(*a) ** 2)), arrays, tangents)
        return [value.numpy() for value in (*gradient, *forward, dual, *hessian, *pull_back(outputs))]

    found, expected = both(call, compute)
    assert_close(found, expected, 1e-4)
    assert np.abs(found[len(arrays) + 1]).max() > 0.1  # jvp's derivative
    if call.options.get("geometry") == kernels.Geometry((2, 2), "same") and call.x == (5, 7, 4):
        return  # the reference itself, by which it is computed, cannot be mapped
    mapped = torch.func.vmap(call.function(), (0, *[None] * (len(arrays) - 1)))(stacked, *arrays[1:])
    assert_close([mapped.numpy()], [np.stack([call.function()(one, *arrays[1:]).numpy() for one in stacked])], 1e-4)


@pytest.mark.only("torch")
@each_call
def test_torchs_graphs(call, rng):
    import torch

    def function(*arrays):
        return call.function()(*arrays)

    arrays = tuple(map(torch.tensor, call.arrays(rng, 8)))
    expected = function(*arrays).numpy()
    traced = torch.jit.trace(function, arrays, check_trace=False)
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    for function in (traced, compiled):
        assert_close([function(*arrays).numpy()], [expected])


@pytest.mark.only("torch")
@pytest.mark.slow
@each_call
def test_torchs_export(call, rng):
    import torch

    class Module(torch.nn.Module):
        def forward(self, *arrays):
            return call.function()(*arrays)

    arrays = tuple(map(torch.tensor, call.arrays(rng, 8)))
    exported = torch.export.export(Module(), arrays).module()
    assert_close([exported(*arrays).numpy()], [call.function()(*arrays).numpy()])


@pytest.mark.only("jax")
@each_kernel
def test_jaxs_transforms(call, rng):
    import jax

    arrays, tangents = (tuple(map(np.asarray, call.arrays(rng))) for _ in range(2))
    stacked = tuple(np.stack([array, 2 * array]) for array in arrays)

    def compute(f):
        def all_of_them(arrays, tangents, stacked):
            gradient = jax.grad(lambda *a: weighted(f(*a) ** 2), tuple(range(len(arrays))))
            one = jax.vmap(f, (0, *[None] * (len(arrays) - 1)))(stacked[0], *arrays[1:])
            slopes = jax.vmap(gradient)(*stacked)
            curve = jax.hessian(lambda scale: weighted(f(scale * arrays[0], *arrays[1:])))(1.0)
            return [*jax.jvp(f, arrays, tangents), *jax.jvp(gradient, arrays, tangents)[1], one, *slopes, curve]

        return list(map(np.asarray, jax.jit(all_of_them)(arrays, tangents, stacked)))

    assert_close(*both(call, compute), 1e-4)


@pytest.mark.only("tensorflow")
@each_kernel
def test_tensorflows_vectorized_map(call, rng):
    import tensorflow as tf

    if call.kernel == "depthwise_conv2d":
        pytest.skip("TensorFlow's own operator cannot be mapped over x alone")
    x, *weights = call.arrays(rng)
    stacked = tf.constant(np.stack([x, 2 * x]))
    found = tf.vectorized_map(lambda one: call.function()(one, *weights), stacked, fallback_to_while_loop=False)
    assert_close([found.numpy()], [np.stack([call.function()(one, *weights) for one in stacked])], 1e-4)


@pytest.mark.only("torch")
@pytest.mark.parametrize("length", [128, 129])
def test_long_sequences_and_accelerators_take_torchs_attention(length, monkeypatch, rng):
    qkv = ops.convert_to_tensor(rng.standard_normal((1, length, 3, 1, 2)).astype("float32"))
    used = []
    monkeypatch.setattr(reference, "attention", lambda *_: used.append(length))
    kernels.attention(qkv)
    assert bool(used) == (length > 128)
    monkeypatch.setattr("convnext.kernels.torch_cpu.computes_in_float32_on_cpu", lambda _: False)
    used.clear()
    kernels.attention(qkv)
    assert used


@pytest.mark.only("torch")
@pytest.mark.parametrize("causal", [False, True])
def test_long_attention_has_second_derivatives(causal, rng):
    arrays = [rng.standard_normal((2, 130, 3, 2, 4)).astype("float32")]
    found, expected = (
        derivatives(functools.partial(attend, causal=causal), arrays, second=True)
        for attend in (kernels.attention, shared.attend_heads_first)
    )
    assert_close(found, expected, 1e-4)
    assert np.abs(found[-1]).max() > 0.1


@pytest.mark.once
def test_a_keras_without_a_faster_form_uses_the_reference():
    assert kernels._forms_of("numpy") is kernels._forms_of("openvino") is reference


def test_the_context_manager_turns_all_forms_off():
    faster = kernels.in_use()
    assert set(faster) == {"affine", "conv2d", "depthwise_conv2d", "attention", "grn"}
    assert set(faster.values()) <= {"reference", f"{BACKEND}_cpu"}
    assert faster["affine"] == f"{BACKEND}_cpu"
    with kernels.use_reference():
        assert set(kernels.in_use().values()) == {"reference"}
    assert kernels.in_use() == faster


def tiny_model():
    return create_convnext_v2(Variant(depths=(1, 1), dims=(4, 8)), 3, (32, 32, 3))


REPORT = """
import json, keras, numpy as np
from convnext import Variant, create_convnext_v2, kernels
keras.utils.set_random_seed(1)
model = create_convnext_v2(Variant(depths=(1, 1), dims=(4, 8)), 3, (32, 32, 3))
x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype("float32")
scores = model.predict(x, verbose=0).tolist()
model.compile("sgd", "mse")
try:
    model.fit(x, np.zeros((2, 3)), verbose=0)
    refusal = None
except Exception as error:
    refusal = f"{type(error).__name__}: {error}"
print(json.dumps([kernels.in_use(), scores, refusal]))
"""


@pytest.mark.once
@pytest.mark.parametrize(
    "settings",
    [
        {"CONVNEXT_KERNELS": "reference"},
        pytest.param({"KERAS_BACKEND": "numpy"}, marks=pytest.mark.slow),
        pytest.param({"KERAS_BACKEND": "openvino"}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: " ".join(settings.values()),
)
def test_models_run_on_the_reference_by_environment_and_on_keras_other_backends(settings):
    backend = settings.get("KERAS_BACKEND")
    if backend == "openvino":
        pytest.importorskip("openvino")
    keras.utils.set_random_seed(1)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype("float32")
    expected = tiny_model().predict(x, verbose=0)
    run = subprocess.run([sys.executable, "-c", REPORT], env={**os.environ, **settings}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    used, scores, refusal = json.loads(run.stdout.splitlines()[-1])
    assert set(used.values()) == {"reference"}
    tolerance = 2**-8 if backend == "openvino" else 1e-4  # bfloat16 is its default where the processor has AMX
    np.testing.assert_allclose(scores, expected, rtol=tolerance, atol=1e-6)
    assert (refusal is None) if backend is None else ("NotImplementedError" in refusal and backend in refusal.lower())


@pytest.mark.once
def test_unknown_value_of_the_switch(monkeypatch):
    monkeypatch.setenv("CONVNEXT_KERNELS", "refrence")
    with pytest.raises(ValueError, match="CONVNEXT_KERNELS must be 'reference' or unset, got 'refrence'"):
        kernels._starts_with_reference()


@pytest.mark.once
def test_separate_patches():
    assert torch_cpu.has_separate_patches(np.zeros((2, 2, 3, 4)), HALVES)
    assert not torch_cpu.has_separate_patches(np.zeros((3, 3, 3, 4)), HALVES)
    assert not torch_cpu.has_separate_patches(np.zeros((2, 2, 3, 4)), HALVES._replace(padding="same"))
