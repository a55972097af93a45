"""The optional libraries tf2onnx and keras-hub, each with its use, in an environment that has them.

ZOO_EXTRAS names the Python of such an environment; without it one is made, which downloads both.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("keras-hub", "kagglehub", "kagglesdk", "tensorflow-text", "tf2onnx")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    if given := os.environ.get("ZOO_EXTRAS"):
        return given
    place = tmp_path_factory.mktemp("extras")
    venv.create(place, symlinks=os.name != "nt")
    (packages,) = place.rglob("site-packages")
    borrowed = [entry for entry in sys.path if Path(entry).name == "site-packages"]
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    executable = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", executable, "install", "--no-deps"]
    if subprocess.run([*pip, "-c", ROOT / "constraints.txt", *EXTRAS]).returncode:
        pytest.skip("keras-hub and tf2onnx cannot be downloaded")
    return str(executable)


def run(python, *arguments, backend, cwd):
    environment = os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([python, *map(str, arguments)], env=environment, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def test_towers_and_tokenizer_of_keras_hub(python, tmp_path):
    printed = run(
        python, ROOT / "examples" / "09_other_towers.py", "--smoke", "--keras-hub", backend="torch", cwd=tmp_path
    )
    assert len(printed.strip().splitlines()) == 3


TOKENIZER = """
import keras_hub, numpy as np, clip
from zoo.inference.encoder import keras_encoder
from zoo.data.preprocess import PreprocessSpec

vocabulary, merges = clip.Tokenizer().tables()
hub = keras_hub.models.CLIPTokenizer(vocabulary=vocabulary, merges=merges)
texts = ["a photo of a cat", "Ein Haus, 1234 m hoch!", "naïve café — ½", "", "it's don't", "word " * 200, "日本語 🙂"]
np.testing.assert_array_equal(clip.as_tokenize(hub)(texts), clip.tokenize(texts, truncate=True))
pair = clip.create_clip(clip.Pair(8, 16, clip.ViT(16, 1, 8, head_width=8), clip.Text(8, 2, 1)))
encoders = [keras_encoder(pair, PreprocessSpec(image_size=16), tokenizer=t) for t in (hub, None)]
np.testing.assert_allclose(*(encoder.embed_texts(texts[:3]) for encoder in encoders))
matrices = [clip.class_matrix(pair, ["cat", "dog"], tokenizer=t) for t in (hub, None)]
np.testing.assert_allclose(*matrices, atol=1e-6)
print(repr(clip.as_tokenize(hub)))
"""


def test_ids_of_keras_hub_are_clips(python, tmp_path):
    assert run(python, "-c", TOKENIZER, backend="torch", cwd=tmp_path).strip() == "CLIPTokenizer(49408, 77)"


EXPORT = """
import sys, numpy as np, zoo
sys.path.insert(0, {tests!r})
from golden import make_golden as golden
from zoo.export import OnnxModel
from zoo.export.command import export_via_keras

for name in ("convnext", "convnextv2", "resnet", "pair-vit", "pair-resnet", "pair-mci", "zero-shot"):
    model = golden.fill(golden.MODELS[name]())
    export_via_keras(model, name + ".onnx", opset=17)
    zoo.export_onnx(model, name + "-ours.onnx", verify=False)
    inputs = golden.make_inputs(model)
    theirs, ours = (OnnxModel(name + suffix).predict(inputs) for suffix in (".onnx", "-ours.onnx"))
    if not isinstance(ours, dict):
        theirs, ours = {{"output": theirs}}, {{"output": ours}}
    for key, value in zip(sorted(theirs), (ours[key] for key in sorted(ours))):
        np.testing.assert_allclose(theirs[key], value, atol=1e-5 * np.abs(value).max())
    print(name)
"""


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_keras_exporter_writes_what_ours_writes(python, tmp_path, backend):
    printed = run(python, "-c", EXPORT.format(tests=str(ROOT / "tests")), backend=backend, cwd=tmp_path)
    assert printed.splitlines()[-1] == "zero-shot"
