"""Random state outside the model's variables: on torch, Dropout without a seed draws from torch's generators."""

import keras
import numpy as np

from zoo.utils.text import shown


def random_state() -> dict[str, np.ndarray]:
    """Return {generator: state}; empty on JAX and TensorFlow, where all seeds are variables."""
    if keras.backend.backend() != "torch":
        return {}
    import torch

    states = {"cpu": torch.get_rng_state()}
    states |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return {name: state.cpu().numpy().copy() for name, state in states.items()}


def set_random_state(state: dict[str, np.ndarray]) -> None:
    """Restore what `random_state` returned; missing devices are ignored. ValueError for what no generator has."""
    if not state or keras.backend.backend() != "torch":
        return
    import torch

    try:
        if "cpu" in state:
            torch.set_rng_state(torch.from_numpy(state["cpu"].copy()))
        for i in range(torch.cuda.device_count()):
            if f"cuda{i}" in state:
                torch.cuda.set_rng_state(torch.from_numpy(state[f"cuda{i}"].copy()), i)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the state of torch's random generator is not valid: {shown(error)}") from error
