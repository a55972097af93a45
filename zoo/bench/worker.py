"""The process of one case: `python -m zoo.bench.worker`, which the benchmark starts and talks to.

The first line of its standard input is a `Case` as JSON. It answers when the model is built and warm; then each line
asks for one turn, whose seconds it answers. Between turns it waits and uses no core. Answers are JSON, a line each.
"""

import json
import os
import sys

from zoo.bench.cases import CAPTIONS, OURS, PEERS, Case
from zoo.bench.timing import take_turn, timed, warm_up
from zoo.utils.env import choose_backend, keep_freed_memory


def main():
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    try:
        case = Case(**json.loads(sys.stdin.readline()))
        call, ready = prepare(case)
        answer(**ready)
        turn_seconds = {"at_least": 0} if case.is_short else {}
        for _ in sys.stdin:
            answer(seconds=take_turn(call, **turn_seconds), **memory(case))
    except Exception as error:  # whatever a backend or a peer raises is the case's result
        answer(error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
        raise


def prepare(case: Case):
    """(function to time, what is known so far) of a case."""
    limit_threads(case)
    keep_freed_memory()  # as the commands that run batch after batch do; peers have it too
    import_libraries(case)
    from zoo.bench.devices import resident_bytes
    from zoo.bench.jobs import create_job, similarities

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


def limit_threads(case: Case) -> None:
    """Keeps this process to as many cores as it may have threads, where the system can; its libraries ask for that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: case.threads])


def import_libraries(case: Case) -> None:
    """Imports what the case runs on, so that neither the build's time nor the model's memory has it."""
    if case.part in CAPTIONS:
        return
    if case.runtime == "onnx":
        import onnxruntime  # noqa: F401
    elif case.library == OURS or PEERS[case.library].on_keras:
        choose_backend(case.backend, trains=case.train)
        import keras

        keras.saving.serialize_keras_object(keras.initializers.Zeros())  # has Keras look for TensorFlow, and import it
    if case.backend == "torch" and case.runtime != "onnx":
        import torch

        torch.set_num_threads(case.threads)
    if case.backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(case.threads)


def memory(case: Case) -> dict:
    from zoo.bench.devices import peak_device_bytes, resident_bytes

    on_backend = case.runtime != "onnx" and case.part not in CAPTIONS
    device_bytes = peak_device_bytes(case.backend) if on_backend else None
    return {"host_bytes": resident_bytes(peak=True), "device_bytes": device_bytes}


if __name__ == "__main__":
    main()
