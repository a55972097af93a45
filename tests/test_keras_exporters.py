"""What Keras' own `model.export` writes agrees with the model, in each format a backend has for Keras' own layers."""

import keras
import numpy as np
import pytest
from golden import make_golden as golden

from convnext import create_convnext_v1

pytestmark = pytest.mark.backend

FORMATS = {"jax": ("tf_saved_model",), "tensorflow": ("tf_saved_model", "litert"), "torch": ("onnx",)}
MODELS = {
    **{
        name: golden.MODELS[name]
        for name in ("convnextv2", "resnet", "pair-vit", "pair-resnet", "pair-mci", "zero-shot")
    },
    "convnext": lambda: create_convnext_v1(golden.ROW, 3, (16, 16, 3), stem_stride=1),
}
FAST = {("jax", "convnextv2"), ("jax", "pair-vit"), ("torch", "resnet")}
NOT_BY_KERAS = {("torch", name) for name in MODELS if name != "resnet"}  # nor is its own LayerNormalization on torch
CASES = [
    pytest.param(
        name, form, marks=[pytest.mark.only(backend), *([] if (backend, name) in FAST else [pytest.mark.slow])]
    )
    for backend, forms in FORMATS.items()
    for form in forms
    for name in MODELS
    if (backend, name) not in NOT_BY_KERAS
]


@pytest.mark.filterwarnings("ignore")  # of the frameworks' exporters
@pytest.mark.parametrize(("name", "form"), CASES)
def test_the_exported_model_agrees(tmp_path, name, form):
    model = golden.fill(MODELS[name]())
    inputs = golden.make_inputs(model, 3)
    wanted = model.predict(inputs, verbose=0)
    path = str(tmp_path / {"onnx": "model.onnx", "litert": "model.tflite"}.get(form, "model"))
    model.export(path, format=form, verbose=False, **({"opset_version": 17} if form == "onnx" else {}))
    found = RUN[form](path, inputs)
    for value, want in zip(found, keras.tree.flatten(wanted), strict=True):
        np.testing.assert_allclose(value, want, atol=1e-5 * np.abs(want).max())


def run_saved_model(path, inputs):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)  # the functions live as long as this object
    return [np.asarray(value) for value in keras.tree.flatten(loaded.serve(inputs))]


def run_litert(path, inputs):
    """Return the outputs in the order of their names, as Keras' nested outputs are."""
    import tensorflow as tf

    run = tf.lite.Interpreter(path).get_signature_runner()
    given = inputs if isinstance(inputs, dict) else dict.fromkeys(run.get_input_details(), inputs)
    names = {name: next(key for key in given if key in name) for name in run.get_input_details()}
    outputs = run(**{name: given[key] for name, key in names.items()})
    return [outputs[name] for name in sorted(outputs)]


def run_onnx(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return session.run(None, inputs if isinstance(inputs, dict) else {names[0]: inputs})


RUN = {"tf_saved_model": run_saved_model, "litert": run_litert, "onnx": run_onnx}
