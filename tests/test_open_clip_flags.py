"""open_clip's command line: its options beside ours, and TensorBoard's event file."""

import pytest

from zoo import cli
from zoo.training import config, tensorboard
from zoo.training.history import History

OURS = {  # open_clip's options: ours
    "--csv-img-key a --csv-caption-key b": "--image-key a --caption-key b",
    "--val-data v.csv": "--validation-data v.csv",
    "--lr 0.1 --wd 0.2 --warmup 3": "--learning-rate 0.1 --weight-decay 0.2 --warmup-steps 3",
    "--precision amp": "--precision float16",
    "--precision amp_bf16": "--precision bfloat16",
    "--precision fp32": "--precision float32",
    "--workers 2": "--threads 2",
    "--accum-freq 4 --batch-size 8": "--accumulate 4 --batch-size 32",
    "--accum-freq 2": "--accumulate 2 --batch-size 64",
    "--siglip": "--loss siglip",
    "--grad-checkpointing": "--checkpoint-activations",
    "--name n": "--output logs/n",
    "--logs l --name n": "--output l/n",
    "--pretrained openai": "--weights openai",
    "--resume latest": "--resume",
    "--grad-clip-norm 2 --log-every-n-steps 5 --force-image-size 64": "--clip-norm 2 --log-every 5 --image-size 64",
    "--csv-separator , --report-to tensorboard --lock-image": "--report-to tensorboard --lock-image",
}


def parse(words):
    given = ["train", "contrastive", "--model", "m", "--train-data", "t.csv", *words.split()]
    options = vars(cli.build_parser().parse_args(given))
    return config.from_open_clip({k: v for k, v in options.items() if k not in ("command", "json", "traceback")})


@pytest.mark.parametrize("theirs", OURS)
def test_options_of_open_clip_are_ours(theirs):
    assert parse(theirs) == parse(OURS[theirs])
    assert parse(theirs) != parse("") or theirs == "--precision fp32"


@pytest.mark.parametrize("both", ["--accum-freq 2 --accumulate 4", "--siglip --loss siglip", "--name n --output o"])
def test_an_option_given_twice_is_refused(both):
    with pytest.raises(ValueError, match="mean the same; give one"):
        parse(both)


@pytest.mark.parametrize(
    ("words", "message"), [("--resume epoch_2.pt", "resumes in its --output folder"), ("--precision fp16", "float16")]
)
def test_values_without_a_counterpart_are_named(words, message, capsys):
    with pytest.raises(SystemExit):
        parse(words)
    assert message in capsys.readouterr().err


@pytest.mark.backend
@pytest.mark.once
def test_tensorboard_reads_the_history(tmp_path):
    tensorflow = pytest.importorskip("tensorflow")  # its reader checks lengths and checksums
    history = History(tmp_path / "history.jsonl", report_to="tensorboard")
    history.add(epoch=1, step=10, loss=2.5, learning_rate=1e-3)
    history.add(epoch=1, step=300, loss=float("nan"), val_loss=2.0, event="went back")
    again = History(tmp_path / "history.jsonl", history.text, "tensorboard")  # a resumed run
    again.add(epoch=2, step=400, loss=1.5)
    path = tmp_path / tensorboard.FOLDER / tensorboard.FILE
    events = [e for e in tensorflow.compat.v1.train.summary_iterator(str(path)) if e.summary.value]
    found = [(event.step, {v.tag: v.simple_value for v in event.summary.value}) for event in events]
    assert found == [
        (10, {"train/loss": 2.5, "train/learning_rate": pytest.approx(1e-3)}),
        (300, {"val/loss": 2.0}),
        (400, {"train/loss": 1.5}),
    ]


@pytest.mark.backend
@pytest.mark.once
def test_an_unknown_report_is_refused():
    from zoo.training.loop import RunConfig

    with pytest.raises(ValueError, match="report_to='wandb'"):
        RunConfig(1, report_to="wandb")
