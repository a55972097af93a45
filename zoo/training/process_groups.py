"""The connected processes of a run. On JAX, XLA sees one global batch; on PyTorch, each process computes on its own
part, and embeddings and gradients are exchanged.
"""

import os
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import keras
import numpy as np

HEARTBEAT = 30  # seconds after which JAX counts a silent process as dead
JOIN = 300  # seconds that PyTorch's processes wait for each other at the start
LOOPBACK = ("127.0.0.1", "localhost")
TABLE_ROWS = 8192  # at least, of a table of which only some rows are exchanged
TORCHRUN = {"processes": "WORLD_SIZE", "process_id": "RANK"}  # option → variable that torchrun sets


class Alone:
    """The only process of a run, and what the groups of several have in common."""

    rank, count = 0, 1

    def barrier(self, name: str) -> None:
        """Wait until all processes are here."""

    def total(self, number: int) -> int:
        """Return the sum of a number over all processes, which all must ask for."""
        return number

    def close(self) -> None:
        """Leave the group, together with the others."""

    # On PyTorch a process computes on its own part of a batch; on JAX, arrays hold the whole batch.

    def gather(self, rows: Any) -> Any:
        """Return the rows of all processes."""
        return rows

    def means(self, numbers: Sequence[float]) -> Sequence[float]:
        """Return the means of numbers over the processes."""
        return numbers


class JaxGroup(Alone):
    """Processes connected by `jax.distributed`, with gloo on CPUs.

    Args:
        coordinator: HOST:PORT of the first process, which listens at this address alone.
        processes: number of processes.
        process_id: number of this one.

    Raises:
        RuntimeError: they do not find each other.
    """

    def __init__(self, coordinator: str, processes: int, process_id: int):
        import jax

        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        bind = {"coordinator_bind_address": coordinator} if process_id == 0 else {}
        address = (coordinator, processes, process_id)
        jax.distributed.initialize(*address, heartbeat_timeout_seconds=HEARTBEAT, **bind)
        self.rank, self.count = jax.process_index(), jax.process_count()

    def barrier(self, name: str) -> None:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)

    def total(self, number: int) -> int:
        from jax.experimental import multihost_utils

        return int(np.sum(multihost_utils.process_allgather(np.array([number]))))

    def close(self) -> None:
        import jax

        jax.distributed.shutdown()


class TorchGroup(Alone):
    """Processes connected by `torch.distributed`: gloo on CPUs, NCCL on GPUs. Arguments and errors as in `JaxGroup`."""

    def __init__(self, coordinator: str, processes: int, process_id: int):
        import torch

        self.rank, self.count = process_id, processes
        self.distributed = torch.distributed
        backend, (host, _, port) = "gloo", coordinator.rpartition(":")
        if host in LOOPBACK and os.path.isdir("/sys/class/net/lo"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", process_id % torch.cuda.device_count())))
        store = self._store(host, int(port))
        self.distributed.init_process_group(backend, store=store, rank=process_id, world_size=processes)

    def _store(self, host: str, port: int):
        """Return the store in which the processes find each other."""
        options: dict[str, Any] = {"world_size": self.count, "timeout": timedelta(seconds=JOIN)}
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":  # else torchrun has one
            listener = socket.create_server((host, port))  # torch alone would listen on all addresses
            options |= {"is_master": True, "master_listen_fd": listener.detach()}
        return self.distributed.TCPStore(host, port, **options)

    def barrier(self, name: str) -> None:
        del name
        self.total(0)

    def total(self, number: int) -> int:
        import torch

        tensor = torch.tensor([number])
        self.distributed.all_reduce(tensor)
        return int(tensor)

    def close(self) -> None:
        self.barrier("the end")
        self.distributed.destroy_process_group()

    def gather(self, rows):
        """Join the rows (B / P, …) of all P processes to (B, …), the same on each.

        If each process differentiates the same function of the result, the mean of their gradients of any weight is
        the gradient of the whole: the part that passes through a process's own rows exists on it alone, and counts P
        times; the part that does not, such as that of the logit scale, exists on all.
        """
        import torch

        fixed = rows.detach().contiguous()
        parts = [torch.empty_like(fixed) for _ in range(self.count)]
        self.distributed.all_gather(parts, fixed)
        parts[self.rank] = rows + (self.count - 1) * (rows - fixed)  # the value of `rows`, P times its gradient
        return torch.cat(parts)

    def average(self, tensors: Sequence) -> None:
        """Replace tensors by their means over the processes, in one message.

        Of large tables, such as token embeddings, only the rows that are not zero on every process are sent.
        """
        import torch

        with torch.no_grad():
            rows = [self._rows_in_use(tensor) for tensor in tensors]
            sent = [tensor if used is None else tensor[used] for tensor, used in zip(tensors, rows, strict=True)]
            flat = torch.cat([values.reshape(-1) for values in sent])
            self.distributed.all_reduce(flat)
            parts = flat.div_(self.count).split([values.numel() for values in sent])
            for tensor, used, values, part in zip(tensors, rows, sent, parts, strict=True):
                tensor[... if used is None else used] = part.view_as(values)

    def _rows_in_use(self, tensor):
        """Return the rows (N,) of a large table that some process changes; None for other tensors."""
        if tensor.ndim != 2 or len(tensor) < TABLE_ROWS:
            return None
        used = tensor.any(dim=1).int()
        self.distributed.all_reduce(used)
        return used.nonzero()[:, 0]

    def means(self, numbers: Sequence[float]) -> Sequence[float]:
        import torch

        values = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
        self.average([values])
        return values.tolist()

    def take_over(self, tensors: Sequence) -> None:
        """Replace tensors by the first process's."""
        for tensor in tensors:
            self.distributed.broadcast(tensor.detach(), 0)


GROUPS: dict[str, Callable[[str, int, int], Alone]] = {"jax": JaxGroup, "torch": TorchGroup}


def from_torchrun() -> dict[str, Any]:
    """Return coordinator, processes and process_id of a process that torchrun started; else nothing."""
    names = ("MASTER_ADDR", "MASTER_PORT", *TORCHRUN.values())
    if keras.backend.backend() != "torch" or not all(name in os.environ for name in names):
        return {}
    address = {"coordinator": f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"}
    return address | {name: int(os.environ[variable]) for name, variable in TORCHRUN.items()}
