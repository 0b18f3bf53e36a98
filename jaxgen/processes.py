"""Many processes as one run: the start, what they tell each other, and stopping together. The engine is JAX's own."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.errors import UserError
from jaxgen.meeting import meet

T = TypeVar("T")

LOSS = re.compile("Gloo|NCCL|peer|UNAVAILABLE|DEADLINE_EXCEEDED")
HEARTBEAT_SECONDS = 30  # a process that has been silent for so long is dead, and the others stop
LOST = "another process of this run was lost: see what it said; the same command on all of them goes on"


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = 60,
) -> None:
    """Joins the processes of a run; must come before anything asks JAX for its devices.

    Slurm, Open MPI, Kubernetes and TPU pods are found by JAX itself, and where there is none of them, and no argument,
    the process is alone. `num_processes=1` keeps it alone in any case.

    Args:
      coordinator: host:port of process 0, that the others can reach.
      num_processes: how many there are.
      process_id: which of them this is, from 0.
      timeout: seconds to wait for the others.

    Raises:
      UserError: only some of the three are given, or the others cannot be reached.
    """
    given = (coordinator, num_processes, process_id)
    if num_processes == 1 and coordinator is None:
        return
    if any(x is not None for x in given) and None in given:
        raise UserError("several processes need --run.coordinator HOST:PORT, --run.num-processes N, --run.process-id I")
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdigit()):
            raise UserError(f"--run.coordinator {coordinator}: expected HOST:PORT of process 0, such as node1:12345")
        if not 0 <= process_id < num_processes:
            raise UserError(f"--run.process-id {process_id}: expected 0 to {num_processes - 1}")
    # JAX would take SIGTERM for itself, also where nobody asks it; `any_process` is how a run stops.
    jax.config.update("jax_enable_preemption_service", False)
    if coordinator is not None:
        meet(coordinator, num_processes, process_id, timeout)
    try:
        jax.distributed.initialize(*given, heartbeat_timeout_seconds=HEARTBEAT_SECONDS, initialization_timeout=timeout)
    except ValueError as error:
        if coordinator is None and "coordinator_address should be defined" in str(error):
            return  # no cluster
        raise UserError(f"the processes of this run cannot be joined ({error})") from None
    except RuntimeError as error:  # jax.errors.JaxRuntimeError: nobody answers
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the other processes cannot be reached ({reason}): are all started, and is it the port?"
        ) from None
    _announce_losses()


def _announce_losses() -> None:
    """Has `jaxgen.herald` read what native code prints on stderr. What Python prints goes there as before."""
    read, write = os.pipe()
    program = [sys.executable, "-I", str(Path(__file__).with_name("herald.py")), f"error: {LOST}"]
    os.posix_spawn(sys.executable, program, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)], setsid=True)
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(write, 2)
    os.close(read)
    os.close(write)


def is_loss(error: Exception) -> bool:
    """Whether an error of JAX comes from the loss of another process."""
    return isinstance(error, jax.errors.JaxRuntimeError) and several() and bool(LOSS.search(str(error)))


def announce_loss() -> None:
    """Says that another process was lost, unless the herald has said it."""
    os.write(2, f"error: {LOST}\n".encode())


def several() -> bool:
    """Whether this is one of several processes; asks nothing of the devices."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this is the process that writes: process 0."""
    return jax.process_index() == 0


def exchange(value: Any) -> list[Any]:
    """The values of all processes, in their order. Every process must call it at the same place."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = process_allgather(np.array([len(text)])).ravel()
    rows = process_allgather(np.pad(text, (0, lengths.max() - len(text))))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def from_main(task: Callable[[], T]) -> T:
    """`task()` of process 0, on all; what it returns must fit into JSON. Its UserError is raised on all."""
    return _together(task if is_main() else lambda: None)[0]


def main_first(task: Callable[[], T]) -> T:
    """`task()` on process 0, then on the others, which find on disk what it left. An error of one is raised on all."""
    results: list[T] = []
    for turn in (True, False):
        _together(lambda turn=turn: results.append(task()) if is_main() == turn else None)
    return results[0]


def _together(task: Callable[[], Any]) -> list[Any]:
    """What `task()` returns on each process; an error of one is raised on all."""
    result, error = None, None
    try:
        result = task()
    except (UserError, OSError) as raised:
        if jax.process_count() == 1:
            raise
        error = str(raised)
    results, errors = zip(*exchange((result, error)), strict=True)
    for process, message in enumerate(errors):
        if message is not None:
            raise UserError(message if process == 0 else f"process {process}: {message}", shared=True)
    return results


def any_process(asked: Callable[[], bool], mesh: Mesh) -> Callable[[], bool]:
    """Whether any process was asked, answered alike on all of them.

    The answer comes one call late among several processes: it is computed beside the steps, and nobody waits for it.
    """
    if jax.process_count() == 1:
        return asked
    split, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    maximum, earlier = jax.jit(jnp.max, out_shardings=everywhere), None

    def answer() -> bool:
        nonlocal earlier
        local = np.full(len(mesh.local_devices), asked())
        previous, earlier = earlier, maximum(jax.make_array_from_process_local_data(split, local))
        return previous is not None and bool(previous)

    return answer
