"""The command `zoo`: output, errors, and a command table that matches the functions it names."""

import argparse
import functools
import inspect
import json
import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from zoo import list_models
from zoo.cli import BAD_INPUT, COMMANDS, GROUPS, build_parser, main, resolve

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, **environment):
    """Run `python -m zoo` with these arguments."""
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


def test_list_by_pattern(capsys):
    assert main(["list", "convnextv2_*"]) == 0
    assert capsys.readouterr().out.split() == list_models("convnextv2_*") != []


def test_list_without_a_match(capsys):
    assert main(["list", "nothing*"]) == BAD_INPUT
    out, err = capsys.readouterr()
    assert (out, err) == ("", "zoo: error: No model matches 'nothing*'.\n")


FINE_TUNED = "convnextv2_tiny.fcmae_ft_in1k "


def test_library_warnings_are_one_line_without_a_source_location(monkeypatch, capsys):
    remark = functools.partial(warnings.warn, "m.pth: the classifier is new.", stacklevel=1)
    monkeypatch.setattr("zoo.models.names.list_or_raise", lambda **_: remark() or ["x"])
    assert main(["list"]) == 0
    assert capsys.readouterr() == ("x\n", "zoo: m.pth: the classifier is new.\n")


def test_warnings_of_frameworks_about_their_own_code_are_left_out(monkeypatch, capsys):
    def work(**_):
        noise = "__array__ implementation doesn't accept a copy keyword, so passing copy=False failed."
        warnings.warn(noise, DeprecationWarning, stacklevel=1)
        warnings.warn("Glyph 29483 (\\N{CJK UNIFIED IDEOGRAPH-732B}) missing from font(s) DejaVu Sans.", stacklevel=1)
        warnings.warn("said by us", stacklevel=1)
        return ["x"]

    monkeypatch.setattr("zoo.models.names.list_or_raise", work)
    assert main(["list"]) == 0
    assert capsys.readouterr() == ("x\n", "zoo: said by us\n")


def test_list_published_weights(capsys):
    assert main(["list", "resnet50", "--weights", "tv*"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["resnet50.tv_in1k", "resnet50.tv2_in1k"]
    assert main(["list", "--weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_models(weights="*")
    assert "  83.00 %  CC-BY-NC-4.0 (not for commercial use)" in next(line for line in lines if FINE_TUNED in line)


def test_list_as_json(capsys):
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
            ["CC-BY-NC-4.0 (not for commercial use)", "fdfb4edf", "83.0 %", "crop 0.875", "tested at     288 pixels"],
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


def test_info_as_json(capsys):
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
def test_unknown_model_names_get_a_suggestion(name, suggestion, capsys):
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
    assert COMMANDS[command].summary[1:] in " ".join(printed.split())
    assert "--json" in printed
    offered = COMMANDS[command].backend or command in ("bench", "doctor", "parity")
    assert ("--backend" in printed) == bool(offered)


@pytest.mark.parametrize("line", [line for command in COMMANDS.values() for line in command.examples])
def test_examples_in_the_help_parse(line):
    program, *arguments = shlex.split(line)
    assert program == "zoo"
    options = build_parser().parse_args(arguments)
    assert line in COMMANDS[options.command].examples


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
def test_invalid_command_lines(arguments, capsys):
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
def test_batch_commands_keep_freed_memory_before_a_backend_is_chosen(arguments, kept, monkeypatch):
    def stop(_):
        raise ValueError("far enough")

    called = []
    monkeypatch.setattr("zoo.cli.keep_freed_memory", lambda: called.append(True))
    monkeypatch.setattr("zoo.cli.choose_backend", stop)
    assert main(arguments) == BAD_INPUT
    assert called == kept


@pytest.mark.parametrize(
    ("command", "level"),
    [("list", None), ("average", None), ("export", "model"), ("search", "batches"), ("experiment", "batches")]
    + [(name, "training") for name in ("train contrastive", "train classify", "pretrain", "demo")],
)
def test_every_command_says_what_it_does_with_a_backend(command, level):
    assert COMMANDS[command].backend == level


CHECK_FUNCTIONS = """
import test_cli
from zoo.cli import choose_backend
choose_backend()
for name, command in test_cli.COMMANDS.items():
    test_cli.check_functions(name, command)
"""


def test_every_command_calls_functions_that_take_its_arguments():
    done = subprocess.run(
        [sys.executable, "-c", CHECK_FUNCTIONS],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def check_functions(name, command):
    """The function takes every argument by name, with none missing; `show` and `succeeded` take the result."""
    parser = argparse.ArgumentParser()
    options = {parser.add_argument(*flags, **options).dest for flags, options in command.arguments}
    options -= {"local_processes"}  # with it, the command runs itself in other processes
    inspect.signature(resolve(command.function)).bind(**dict.fromkeys(options))
    for path in filter(None, (command.show, command.succeeded)):
        function = resolve(path)
        assert callable(function), f"{name}: {path}"
        if function is not str:
            inspect.signature(function).bind("result")


def test_unknown_model_of_a_command_that_runs_a_backend():
    done = run("bench", "convnext_tinny")
    assert done.returncode == BAD_INPUT
    assert done.stderr.splitlines()[-1].startswith("zoo: error: Unknown model 'convnext_tinny'. Did you mean")
    assert "Traceback" not in done.stderr


def test_doctor_as_json():
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert {"python", "import names", "backends", "keras", "tokenizer", "model", "kernels"} <= set(checks)
    assert [name for name, check in checks.items() if check["passed"] is False] == []
    assert "probabilities sum to 1.0" in checks["model"]["detail"]
