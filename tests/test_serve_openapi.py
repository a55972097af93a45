"""The description in /openapi.json against what the routes do: schemathesis makes right and wrong requests from it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from serve_case import album_with_index, running, some_images, stub_pipeline

pytestmark = pytest.mark.slow

# A schema says that a text is an image as a data URI, but not that it decodes.
LEFT_OUT = "positive_data_acceptance"


def test_the_routes_do_what_the_description_says(tmp_path, caplog):
    program = shutil.which("schemathesis", path=Path(sys.executable).parent) or shutil.which("schemathesis")
    assert program, "schemathesis is missing; install it with: pip install -c constraints.txt schemathesis"
    pipeline = stub_pipeline()
    photos = album_with_index(tmp_path, some_images(), "pair.safetensors", pipeline)
    with running(pipeline, index=photos / "index", name="pair") as client:
        address = f"http://127.0.0.1:{client.port}/openapi.json"
        options = ["--seed", "0", "--max-examples", "40", "--exclude-checks", LEFT_OUT, "--no-color"]
        done = subprocess.run(
            [program, "run", address, *options], cwd=tmp_path, capture_output=True, text=True, timeout=600
        )
        metrics = client.get("/metrics").body.decode()
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert 'status="500"' not in metrics and 'method="POST",route="/v1/search",status="200"' in metrics
    assert "Traceback" not in caplog.text and not [record for record in caplog.records if record.exc_info]
