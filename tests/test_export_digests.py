"""ONNX files have the same bytes on every backend, and layer names keep them the same from version to version."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from export_cases import build

from zoo.export import emit, to_proto
from zoo.utils.env import installed_backends

pytestmark = pytest.mark.backend

ROOT = Path(__file__).resolve().parent.parent

# SHA-256 of the float32 file, not folded: folding sums in float64, whose last bit may depend on the machine.
DIGESTS = {
    "convnext v1": "098bdd25ddbcc607fad117c3d5c4e706bd1bc1bc06d3fbe2cf80518d39c87f7d",
    "convnext v2": "7496caf5e10ae784c4fd68eb757d9ee44b220843e516f054064c4412676e33ac",
    "fine stem": "1bfc4b38a8b7152051c7a1257ec23ddb0058c3e80490a06fe9b79e5d9a768f49",
    "resnet basic": "7ad97011db02f7fed8b5c017bf37ad5a5c10c9bc7c54ce3d64d8629345df7f8f",
    "resnet bottleneck": "2d3c1264fdd9231427007e94f6a48666d7b3180a0b5e7773abe2e4f0c3890ff0",
    "vit pair": "0110b96ba64112cfd5170f5fa9836025e03b9ff96dcf44d07ae399660ddb177c",
    "quick gelu": "cf55032d0f8457bc024a1702dd59ef77d273f46af8e93703c3810a115002e38d",
    "convnext pair": "d226f20146ba06a0b3ad53678086673ecd1b99890d1b5406a96714a2f905869d",
    "mlp pair": "7cda91486b37987b5a4c8be68742e88ad088fcfd625e2ce67e43153c0003636e",
    "resnet pair": "22f84665948a32fcbe58d28c98be81ece129545235890953f05c58f341bf03a5",
    "mobile pair": "385ea9639dd0faa1da7971d2edfd8da1401e34479cc272f6c6702af8fa966202",
    "stem of convolutions": "77f346752f656a3ad9ab5921b330ed8b241dab04bf51efe9c3f86d6a2700c33f",
}


@pytest.mark.parametrize("case", DIGESTS)
def test_a_file_keeps_its_digest(case):
    data = to_proto(emit(build(case), fold=False)).SerializeToString(deterministic=True)
    assert hashlib.sha256(data).hexdigest() == DIGESTS[case]


def digests(backend):
    """Return {case: {precision: SHA-256}} of all export cases, computed in a process of that backend."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "export_cases.py")],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.once
def test_folded_files_of_every_precision_are_the_same_on_every_backend():
    backends = installed_backends()
    if len(backends) < 2:
        pytest.skip("needs two backends")
    first, *others = [digests(backend) for backend in backends]
    assert len(first) > 10
    for backend, found in zip(backends[1:], others, strict=True):
        assert found == first, f"{backend} differs from {backends[0]}"
