"""Agreement with timm, transformers and open_clip, piece by piece, and that a disagreement is detected."""

import functools
import gc
import json
import math

import keras
import numpy as np
import oracle_case
import oracles
import pytest

from zoo.bench import parity

pytestmark = pytest.mark.backend

CASES = {case.name: case for case in oracles.cases() if not case.full}
WHOLE = {case.name: case for case in oracles.cases() if case.full}
TRUNK_PIECES = ("stem", "stage_0", "stage_1", "stage_2", "stage_3")
CLASSIFIER_PIECES = (*TRUNK_PIECES, "pooled", "logits")
SMALL = "timm-convnext_epsilon_1e-5"
EVERYWHERE = (  # one of each tower and block; the others differ from them in size or in the library of the weights
    *("timm-convnext_tiny-narrow", "torchvision-convnext_tiny-narrow", "transformers-convnextv2_atto-narrow"),
    *("facebook-convnextv2_pico_fcmae-narrow", "facebook-convnextv2_pico_fcmae_sparse-narrow"),
    *("timm-resnet18-narrow", "transformers-resnet50-narrow", SMALL),
    *("open_clip-RN50-narrow", "open_clip-ViT-B-16-narrow", "open_clip-convnext_v2_atto", "transformers-ViT-small-32"),
    *("open_clip-MobileCLIP-S1_narrow", "open_clip-MobileCLIP-B_narrow"),
)


def marks(case):
    return [] if case.name in EVERYWHERE else [pytest.mark.wide]


def pieces(case):
    if case.pieces:
        return case.pieces
    names = CLASSIFIER_PIECES if case.arguments.get("include_top", True) else TRUNK_PIECES
    return [f"{height}x{width}/{piece}" for height, width in case.sizes for piece in names]


@functools.cache
def errors(folder):
    """Return {piece: Row} of a case, computed once."""
    return {row.output: row for row in parity.compare(folder)}


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        pytest.param(case.name, piece, marks=marks(case), id=f"{case.name}-{piece}")
        for case in CASES.values()
        for piece in pieces(case)
    ],
)
def test_agrees_with_the_reference(oracle_dir, name, piece):
    row = errors(oracle_dir / name)[piece]
    assert row.error <= row.tolerance == CASES[name].tolerance, str(row)


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_model_agrees_with_the_reference(oracle_dir, name):
    parity.create_row.cache_clear()  # the previous one is as large
    parity.classifier_probe.cache_clear()
    gc.collect()
    rows = parity.compare(oracle_dir / name)
    assert {row.output for row in rows} == set(pieces(WHOLE[name]))
    assert {row.tolerance for row in rows} == {WHOLE[name].tolerance}
    assert parity.all_within(rows), parity.to_markdown(rows)


def test_all_compared_pieces_are_listed(oracle_dir):
    assert set(EVERYWHERE) <= set(CASES)
    for name in (SMALL, "transformers-ViT-small-32"):
        assert set(errors(oracle_dir / name)) == set(pieces(CASES[name]))


@pytest.mark.parametrize(
    "change",
    [{"epsilon": 1e-6}, {"activation": "silu"}, {"patch_size": 4, "epsilon": 2e-5}],
    ids=lambda change: " ".join(change),
)
def test_a_small_difference_is_detected(oracle_dir, change):
    reference = dict(np.load(oracle_dir / SMALL / "reference.npz"))
    case = json.loads((oracle_dir / SMALL / "case.json").read_text(encoding="utf-8"))
    for row, agrees in ((case["row"], True), ({**case["row"], **change}, False)):
        model = parity.load_case(oracle_dir / SMALL, {**case, "row": row})
        ours = parity.run_classifier(model, reference)
        worst = max(parity.error(value, reference[name]) for name, value in ours.items())
        assert (worst <= oracle_case.TOLERANCE) == agrees, f"{row} on {keras.backend.backend()}: {worst}"


def test_the_table_shows_the_worst_size_and_marks_failures():
    def row(output, error):
        return parity.Row("case", "timm 1", "jax 1", output, error, 2e-5)

    rows = [row("1x1/logits", 1e-6), row("2x2/logits", 3e-6), row("1x1/stage_0", 1e-4), row("2x2/stage_0", math.nan)]
    assert parity.to_markdown(rows[:3]).splitlines()[-1] == "| case | timm 1 | **1.0e-04** stage_0 | 3.0e-06 |"
    assert parity.to_markdown(rows).splitlines()[-1] == "| case | timm 1 | **nan** stage_0 | 3.0e-06 |"
    assert [parity.to_markdown(chosen).splitlines()[1][:6] for chosen in (rows, rows[:2])] == ["0 of 1", "1 of 1"]
    assert parity.all_within(rows[:2])
    assert not parity.all_within(rows[1:3])
    assert not parity.all_within(rows[3:])


def test_the_table_shows_backends_side_by_side():
    rows = [
        parity.Row("case", "timm 1", backend, output, error, 2e-5)
        for backend, error in (("jax 1", 1e-6), ("torch 1", 3e-5))
        for output in ("1x1/logits", "1x1/stage_0")
    ]
    lines = parity.to_markdown(rows).splitlines()
    assert lines[1] == "0 of 1 cases within their tolerance"
    assert lines[3].count("|") == lines[4].count("|") == 7
    assert lines[5] == "| case | timm 1 | 1.0e-06 stage_0 | 1.0e-06 | **3.0e-05** stage_0 | **3.0e-05** |"


@pytest.mark.once
@pytest.mark.slow
def test_several_backends_run_in_processes_of_their_own(oracle_dir):
    rows = parity.parity_on(oracle_dir, SMALL, ("jax", "torch"))
    assert [name.split()[0] for name in dict.fromkeys(row.backend for row in rows)] == ["jax", "torch"]
    assert parity.all_within(rows)


@pytest.mark.once
@pytest.mark.slow
def test_an_error_in_a_backends_process_is_raised(oracle_dir):
    with pytest.raises(ValueError, match=r"^torch: No case matches 'nothing-\*' in"):
        parity.parity_on(oracle_dir, "nothing-*", ("torch", "jax"))


def test_errors_are_relative_to_the_largest_value_and_nan_for_other_shapes():
    theirs = np.float32([1, -4])
    assert parity.error(np.float32([1, -3]), theirs) == 0.25
    assert math.isnan(parity.error(np.float32([[1, -4]]), theirs))
    assert math.isnan(parity.error(np.float32([np.nan, -4]), theirs))


def test_a_pattern_selects_cases_and_no_match_says_what_to_run(oracle_dir):
    assert {row.case for row in parity.parity(oracle_dir, SMALL)} == {SMALL}
    with pytest.raises(ValueError, match=r"No case matches 'nothing-\*'.*python tests/oracles\.py"):
        parity.parity(oracle_dir, "nothing-*")
    with pytest.raises(ValueError, match="There is no folder 'nowhere'"):
        parity.parity("nowhere")
