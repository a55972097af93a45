"""The command `zoo`: what it prints, what it refuses, and that its table leads to functions that exist."""

import functools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from zoo import list_models
from zoo.cli import BAD_INPUT, COMMANDS, GROUPS, main

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, **environment):
    """`python -m zoo` with these arguments, finished."""
    return subprocess.run(
        [sys.executable, "-m", "zoo", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"} | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def test_list(capsys):
    assert main(["list"]) == 0
    assert capsys.readouterr().out.splitlines() == list_models()


def test_list_a_pattern(capsys):
    assert main(["list", "convnextv2_*"]) == 0
    assert capsys.readouterr().out.split() == list_models("convnextv2_*") != []


def test_list_of_nothing(capsys):
    assert main(["list", "nothing*"]) == BAD_INPUT
    out, err = capsys.readouterr()
    assert (out, err) == ("", "zoo: error: No model matches 'nothing*'.\n")


FINE_TUNED = "convnextv2_tiny.fcmae_ft_in1k "


def test_what_the_library_remarks_on_is_one_line_without_a_place_in_the_code(monkeypatch, capsys):
    remark = functools.partial(warnings.warn, "m.pth: the classifier is new.", stacklevel=1)
    monkeypatch.setattr("zoo.models.names.listed", lambda **_: remark() or ["x"])
    assert main(["list"]) == 0
    assert capsys.readouterr() == ("x\n", "zoo: m.pth: the classifier is new.\n")


def test_list_published_weights(capsys):
    assert main(["list", "resnet50", "--weights", "tv*"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["resnet50.tv_in1k", "resnet50.tv2_in1k"]
    assert main(["list", "--weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_models(weights="*")
    assert "  83.00 %  CC-BY-NC-4.0 (not for commercial use)" in next(line for line in lines if FINE_TUNED in line)


def test_list_for_programs(capsys):
    assert main(["list", "resnet*", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("convnext_v2_tiny", ["clip/convnext_v2_tiny", "91,687,809", "224 × 224 × 3"]),
        ("convnextv2_tiny", ["convnextv2_tiny", "28,635,496", "8.91 G, of 4.46 G", "arXiv:2301.00808"]),
        ("convnext_xxlarge", ["convnext_xxlarge", "846,471,016"]),
        ("resnet50", ["25,557,032", "arXiv:1512.03385"]),
        ("clip/ViT-B-32", ["151,277,313", "bicubic"]),
        (
            "convnextv2_tiny.fcmae_ft_in1k",
            ["CC-BY-NC-4.0 (not for commercial use)", "unpinned", "83.0 %", "crop 0.875", "tested at     288 pixels"],
        ),
        ("ViT-B-32.openai", ["timm/vit_base_patch32_clip_224.openai", "quick_gelu", "zero-shot", "MIT"]),
        ("convnext_tiny.fb_in22k", ["21,841"]),
        ("ViT-L/14@336px", ["clip/ViT-L-14-336", "427,944,193", "336 × 336 × 3"]),
    ],
)
def test_info(name, facts, capsys):
    assert main(["info", name]) == 0
    printed = capsys.readouterr().out
    assert [fact for fact in facts if fact not in printed] == []


def test_info_for_programs(capsys):
    assert main(["info", "convnext_v2_tiny", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert (info["name"], info["parameters"], info["input"]) == ("clip/convnext_v2_tiny", 91_687_809, [224, 224, 3])
    assert info["preprocess"]["interpolation"] == "bicubic"


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("convnextv2_tinny", "'convnextv2_tiny'"),
        ("convnext_v2_small", "'convnextv2_small'"),
        ("resnet51", "'resnet50'"),
        ("ViT-B-23", "'clip/ViT-B-32'"),
        ("convnextv2_tiny.fcmea", "There are 'fcmae'"),
    ],
)
def test_unknown_name(name, suggestion, capsys):
    assert main(["info", name]) == BAD_INPUT == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("zoo: error: ") and err.count("\n") == 1
    assert suggestion in err


def test_traceback_on_request(capsys):
    assert main(["info", "nothing_like_it", "--traceback"]) == BAD_INPUT
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("zoo: error: Unknown model")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert " ".join(COMMANDS[command].summary.split()) in " ".join(printed.split())
    assert "--json" in printed
    assert ("--backend" in printed) == (COMMANDS[command].uses_backend or command in ("bench", "doctor", "parity"))


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    words = capsys.readouterr().out.split()
    assert [command for command in COMMANDS if command.split()[0] not in words] == []


@pytest.mark.parametrize("group", GROUPS)
def test_help_of_a_group_names_its_commands(group, capsys):
    with pytest.raises(SystemExit):
        main([group, "--help"])
    words = capsys.readouterr().out.split()
    jobs = [command.split()[1] for command in COMMANDS if command.split()[0] == group and " " in command]
    assert jobs and [job for job in jobs if job not in words] == []


@pytest.mark.parametrize(
    "arguments",
    [[], ["lst"], ["info"], ["list", "--colour"], ["demo", "--backend", "theano"], ["demo", "--epochs", "many"]],
    ids=" ".join,
)
def test_command_lines_that_cannot_be_read(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == BAD_INPUT
    assert "error:" in capsys.readouterr().err.splitlines()[-1]


def test_unknown_backend_in_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "theano")
    assert main(["demo"]) == BAD_INPUT
    err = capsys.readouterr().err
    assert err == "zoo: error: Unknown backend 'theano'. Allowed: jax, tensorflow, torch.\n"


def test_python_m_zoo():
    done = run("list", "resnet1*")
    assert (done.returncode, done.stdout, done.stderr) == (0, "resnet18\nresnet101\nresnet152\n", "")
    done = run("info", "resnet17")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (BAD_INPUT, "", 1)


@pytest.mark.parametrize(
    "arguments, kept",
    [
        (["embed", "photos", "--model", "own.safetensors", "--out", "vectors"], [True]),
        (["pretrain", "--model", "convnextv2_atto", "--train-data", "photos"], [True]),
        (["export", "convnextv2_atto", "own.onnx"], []),
    ],
    ids=lambda value: value[0] if value and isinstance(value[0], str) else None,
)
def test_what_runs_batches_keeps_freed_memory_before_a_backend_is_chosen(arguments, kept, monkeypatch):
    def stop(_):
        raise ValueError("far enough")

    called = []
    monkeypatch.setattr("zoo.cli.keep_freed_memory", lambda: called.append(True))
    monkeypatch.setattr("zoo.cli.choose_backend", stop)
    assert main(arguments) == BAD_INPUT
    assert called == kept


def test_every_function_of_the_table_exists():
    code = (
        "from zoo.cli import COMMANDS, choose_backend, resolve; choose_backend()\n"
        "for command in COMMANDS.values():\n"
        "    for path in (command.function, command.show, command.succeeded):\n"
        "        assert path is None or callable(resolve(path)), path\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_bad_name_of_a_command_that_runs_a_backend():
    done = run("bench", "convnext_tinny")
    assert done.returncode == BAD_INPUT
    assert done.stderr.splitlines()[-1].startswith("zoo: error: Unknown model 'convnext_tinny'. Did you mean")
    assert "Traceback" not in done.stderr


def test_doctor_for_programs():
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert {"python", "import names", "backends", "keras", "tokenizer", "model"} <= set(checks)
    assert [name for name, check in checks.items() if check["passed"] is False] == []
    assert "probabilities sum to 1.0" in checks["model"]["detail"]
