"""The process of one case, `python -m zoo.bench.worker`, started by processes.py.

The first line on standard input is a `Case` as JSON; the answer comes when the model is built and warm. Each further
line starts one turn; the answer holds its seconds. Between turns the process sleeps. Answers are one line of JSON.
"""

import json
import os
import sys

from zoo.bench.cases import CAPTIONS, OURS, PEERS, Case
from zoo.bench.timing import take_turn, timed, warm_up
from zoo.utils.env import choose_backend, import_onnxruntime, keep_freed_memory


def main():
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries that print must not mix with the answers

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    try:
        case = Case(**json.loads(sys.stdin.readline()))
        call, ready = prepare(case)
        answer(**ready)
        turn_seconds = {"at_least": 0} if case.is_short else {}
        for _ in sys.stdin:
            answer(seconds=take_turn(call, **turn_seconds), **memory(case))
    except Exception as error:  # any error of a backend or peer becomes the case's result
        answer(error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
        raise


def prepare(case: Case):
    """Build and warm up a case; return (function to time, first answer)."""
    _limit_threads(case)
    keep_freed_memory()  # as in the commands that run many batches; peers profit as well
    _import_libraries(case)
    from zoo.bench.jobs import create_job, similarities
    from zoo.bench.machine import resident_bytes

    library_bytes = resident_bytes()
    build_seconds, job = timed(lambda: create_job(case))
    if job.settle:
        job.settle()
    first_seconds, outputs = timed(job.call)
    if not case.is_short:
        warm_up(job.call)
    ready = {
        "device": job.device,
        "parameters": job.parameters,
        "call_flops": job.flops,
        "build_seconds": build_seconds,
        "first_seconds": first_seconds,
        "library_bytes": library_bytes,
        "similarities": similarities(case, outputs),
    }
    return job.call, ready


def _limit_threads(case: Case) -> None:
    """Bind this process to as many cores as it may have threads, where supported; libraries count these cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case.threads])


def _import_libraries(case: Case) -> None:
    """Import what the case runs on, so that build time and memory do not include it."""
    if case.part in CAPTIONS:
        return
    if case.runtime == "onnx":
        import_onnxruntime()
    elif case.library == OURS or PEERS[case.library].on_keras:
        choose_backend(case.backend, trains=case.train)
        import keras

        if not case.is_short:  # Keras imports TensorFlow here, if installed, which takes seconds
            keras.saving.serialize_keras_object(keras.initializers.Zeros())
    if case.backend == "torch" and case.runtime != "onnx":
        import torch

        torch.set_num_threads(case.threads)
    if case.backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(case.threads)


def memory(case: Case) -> dict[str, int | None]:
    """Return {"host_bytes", "device_bytes"}, the peaks so far."""
    from zoo.bench.machine import peak_device_bytes, resident_bytes

    on_backend = case.runtime != "onnx" and case.part not in CAPTIONS
    device_bytes = peak_device_bytes(case.backend) if on_backend else None
    return {"host_bytes": resident_bytes(peak=True), "device_bytes": device_bytes}


if __name__ == "__main__":
    main()
