"""The table of pairs against open_clip's models, built on the meta device in a separate process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import clip

OURS = {name for name in clip.VARIANTS if name.startswith("convnext_v2_")}
APPLES = {"MobileCLIP-S0"}  # published with Apple's own code alone
ALL = tuple(name for name in clip.VARIANTS if name not in OURS)
FEW = ("RN50", "ViT-S-32-alt", "ViT-B-16-plus-240", "convnext_base_w_320", "MobileCLIP-S0", "MobileCLIP2-S2")
COUNT = """
import json, sys, torch
from helpers import declare_torchvision_operators
declare_torchvision_operators()
import open_clip
from open_clip.factory import get_model_config
described = {}
for name in sys.argv[1:]:
    config = get_model_config(name)
    if config:
        create = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
        with torch.device("meta"):
            model = create(**config)
        parameters = sum(p.numel() for p in model.parameters())
        text = config["text_cfg"]
        described[name] = [parameters, config["embed_dim"], config["vision_cfg"]["image_size"]]
        described[name] += [text["width"], text["heads"], text["layers"]]
print(json.dumps(described))
"""


@pytest.fixture(scope="module", params=[FEW, pytest.param(ALL, marks=pytest.mark.slow)], ids=["few", "all"])
def theirs(request):
    """{name: [parameters, embed_dim, image_size, text width, heads, layers]} of the names that open_clip has."""
    here = Path(__file__).resolve().parent
    run = subprocess.run(
        [sys.executable, "-c", COUNT, *request.param],
        cwd=here,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_rows_are_those_of_open_clip(theirs, request):
    names = request.node.callspec.params["theirs"]
    assert set(names) - set(theirs) == APPLES & set(names)
    rows = {name: clip.VARIANTS[name] for name in theirs}
    described = {
        name: [clip.parameters(row), row.embed_dim, row.image_size, row.text.width, row.text.heads, row.text.layers]
        for name, row in rows.items()
    }
    assert described == theirs
