"""The work that the benchmark times, called once per kind in this process."""

import keras
import numpy as np
import pytest

from zoo import model_info
from zoo.bench.cases import Case
from zoo.bench.jobs import create_job, similarities

pytestmark = [pytest.mark.backend, pytest.mark.once]

SMALL = {"batch_size": 2, "image_size": 32, "is_short": True}


def case(name="convnextv2_atto", **fields):
    return Case(name, backend=keras.backend.backend(), **{**SMALL, **fields})


@pytest.mark.parametrize("mode", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_forward_pass(mode):
    job = create_job(case(mode=mode))
    job.call()
    assert job.parameters == model_info("convnextv2_atto").parameters


def test_a_folded_model_has_fewer_parameters_and_the_same_outputs():
    keras.backend.clear_session()
    whole, folded = (create_job(case(runtime=runtime)) for runtime in ("keras", "folded"))
    assert folded.parameters < whole.parameters
    found = [similarities(case(), job.call()) for job in (whole, folded)]
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


@pytest.mark.parametrize(
    "fields", [pytest.param({"mode": "predictor"}, marks=pytest.mark.slow), {"train": True}, {"part": "matmul"}]
)
def test_other_work_with_a_classifier(fields):
    create_job(case(**fields)).call()


@pytest.mark.slow  # the file is written by a process of its own
def test_onnx_runtime():
    create_job(case(runtime="onnx", mode="compiled")).call()


@pytest.mark.parametrize("part", ["zero-shot", "pictures", "cached-texts", "search", "mixed-captions"])
def test_work_with_a_pair(part):
    pytest.importorskip("sklearn")  # its photographs are the image files of "pictures"
    create_job(case("clip/convnext_v2_atto", part=part, batch_size=1)).call()
