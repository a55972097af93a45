"""The table of pairs against open_clip's models, built on the meta device in a separate process."""

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


@pytest.mark.slow  # the counts of every row are in test_parameter_counts.py
def test_rows_are_those_of_open_clip():
    here, names = Path(__file__).resolve().parent, [name for name in clip.VARIANTS if name not in OURS]
    run = subprocess.run([sys.executable, "-c", COUNT, *names], cwd=here, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    # {name: [parameters, embed_dim, image_size, text width, heads, layers]} of the names that open_clip has
    theirs = json.loads(run.stdout.splitlines()[-1])
    assert set(names) - set(theirs) == APPLES
    rows = {name: clip.VARIANTS[name] for name in theirs}
    described = {
        name: [clip.parameters(row), row.embed_dim, row.image_size, row.text.width, row.text.heads, row.text.layers]
        for name, row in rows.items()
    }
    assert described == theirs
