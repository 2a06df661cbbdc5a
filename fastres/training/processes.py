"""One process, or the several that ``torchrun`` starts."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ..cli.errors import CliError

__all__ = ["Processes", "start_processes"]


@dataclass(frozen=True)
class Processes:
    """This process's place among the others."""

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def parallel(self, model: nn.Module) -> nn.Module:
        """The module to call in training: gradients are averaged over the processes."""
        return DistributedDataParallel(model) if self.count > 1 else model

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def union(self, values: set[str]) -> set[str]:
        """What any of the processes has."""
        if self.count == 1:
            return values
        gathered: list[Any] = [None] * self.count
        distributed.all_gather_object(gathered, values)
        return set().union(*gathered)

    def wait(self) -> None:
        """Returns when every process is here."""
        if self.count > 1:
            distributed.barrier()


@contextlib.contextmanager
def start_processes(device: str) -> Iterator[Processes]:
    """Joins the process group that ``torchrun`` describes in the environment, if there is one.

    Raises:
        CliError: no such device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise CliError(f"--device: got {device!r}, expected auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise CliError("--device: got 'cuda', but torch sees no GPU")
    is_gpu = device != "cpu" and torch.cuda.is_available()
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if is_gpu else "cpu"
    if is_gpu:
        torch.cuda.set_device(chosen)
    if "WORLD_SIZE" not in os.environ:
        yield Processes(0, 1, torch.device(chosen))
        return
    distributed.init_process_group("nccl" if is_gpu else "gloo")
    try:
        rank, count = distributed.get_rank(), distributed.get_world_size()
        yield Processes(rank, count, torch.device(chosen))
    finally:
        distributed.destroy_process_group()
