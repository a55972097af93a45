"""The pairs' table against open_clip's own models: built without a byte of weights, in a process of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import clip

OURS = {name for name in clip.VARIANTS if name.startswith("convnext_v2_")}
APPLES = {"MobileCLIP-S0"}  # published with Apple's own code alone
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


@pytest.fixture(scope="module")
def theirs():
    """{name: [parameters, embed_dim, image_size, text width, heads, layers]} of the names that open_clip has."""
    here = Path(__file__).resolve().parent
    names = [name for name in clip.VARIANTS if name not in OURS]
    run = subprocess.run(
        [sys.executable, "-c", COUNT, *names], cwd=here, capture_output=True, text=True, timeout=600, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_every_row_but_our_own_is_in_open_clip(theirs):
    assert set(clip.VARIANTS) - set(theirs) == OURS | APPLES


@pytest.mark.parametrize("name", [name for name in clip.VARIANTS if name not in OURS | APPLES])
def test_a_row_is_open_clips(theirs, name):
    row = clip.VARIANTS[name]
    text = [row.text.width, row.text.heads, row.text.layers]
    assert [clip.parameters(row), row.embed_dim, row.image_size, *text] == theirs[name]
