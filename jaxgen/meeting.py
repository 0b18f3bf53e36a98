"""Processes of a run meet at the coordinator's port before JAX starts, which could not say who is missing."""

import json
import socket
import time
from contextlib import ExitStack, suppress

from jaxgen.errors import UserError


def meet(coordinator: str, count: int, index: int, timeout: float) -> None:
    """Return when all processes have come. Every process must call it, in any order.

    Args:
      coordinator: HOST:PORT, where process 0 listens.
      count: number of processes.
      index: of this process, from 0.
      timeout: seconds to wait.

    Raises:
      UserError: a process did not come, or two have the same index; the message names it.
    """
    host, _, port = coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    within = f"within {timeout:g} s (--run.start-timeout)"
    if index == 0:
        problem = _receive(int(port), count, deadline, within)
    else:
        problem = _join(host.strip("[]"), int(port), json.dumps([index, count]), deadline)
        problem = f"process 0 did not answer at {coordinator} {within}: is it started?" if problem is None else problem
    if problem:
        raise UserError(problem)


def _receive(port: int, count: int, deadline: float, within: str) -> str:
    """Process 0: waits for the others and tells all of them what is wrong; empty if nothing is."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        return f"process 0 cannot listen on port {port} ({error.strerror}): is there another --run.process-id 0?"
    with ExitStack() as stack:
        stack.enter_context(server)
        missing, peers, problem = set(range(1, count)), [], ""
        while missing and not problem:
            try:
                server.settimeout(max(0.001, deadline - time.monotonic()))
                peer = stack.enter_context(server.accept()[0])
            except TimeoutError:
                named = f"process {', '.join(map(str, sorted(missing)))}"
                problem = f"{named} of this run did not come {within}: did the command there end with an error?"
                break
            with suppress(OSError, ValueError, TypeError):  # a stranger
                peer.settimeout(1)
                other, others = json.loads(peer.makefile().readline(100))
                peers.append(peer)
                if others != count:
                    problem = f"process {other} has --run.num-processes {others}, and process 0 has {count}"
                elif other not in missing:
                    problem = f"two processes have --run.process-id {other}: expected each of 0 to {count - 1} once"
                missing.discard(other)
        for peer in peers:
            with suppress(OSError):
                peer.sendall(f"{problem}\n".encode())
    return problem


def _join(host: str, port: int, hello: str, deadline: float) -> str | None:
    """Another process: the answer of process 0, which is empty if all have come; None without an answer."""
    while (left := deadline - time.monotonic()) > 0:
        with suppress(OSError, UnicodeDecodeError), socket.create_connection((host, port), timeout=left) as peer:
            peer.sendall(f"{hello}\n".encode())
            peer.settimeout(left + 5)  # process 0 may have started later
            if (answer := peer.makefile().readline()).endswith("\n"):
                return answer.strip()
        time.sleep(0.1)
    return None
