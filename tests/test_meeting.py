"""Processes meet before JAX starts; whoever is missing or doubled is named."""

import socket
import threading

import pytest

from jaxgen.errors import UserError
from jaxgen.meeting import meet


def address() -> str:
    """A port that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


def outcomes(indices: list[int], counts: list[int], timeout: float, coordinator: str = "") -> list[str]:
    """Error message of each process; empty if all processes have come."""
    where, said = coordinator or address(), [""] * len(indices)

    def one(i: int) -> None:
        try:
            meet(where, counts[i], indices[i], timeout)
        except UserError as error:
            said[i] = str(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(indices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_all_come_and_may_meet_again():
    where = address()
    assert outcomes([0, 1, 2], [3] * 3, 30, where) == [""] * 3
    assert outcomes([2, 0, 1], [3] * 3, 30, where) == [""] * 3  # the port is free again, as JAX needs it


def test_a_stranger_is_not_counted():
    where = address()
    host, _, port = where.rpartition(":")

    def knock() -> None:
        for content in (b"GET / HTTP/1.1\r\n", b"\xff\n", b""):
            while True:
                try:
                    with socket.create_connection((host, int(port))) as s:
                        s.sendall(content)
                    break
                except OSError:
                    pass

    thread = threading.Thread(target=knock)
    thread.start()
    with pytest.raises(UserError, match="process 1 of this run did not come within 1 s"):
        meet(where, 2, 0, 1)
    thread.join()


@pytest.mark.parametrize(
    ("indices", "counts", "message"),
    [
        ([0, 2], [4, 4], r"process 1, 3 of this run did not come within 0.3 s \(--run.start-timeout\)"),
        ([1, 1], [2, 2], r"process 0 did not answer at 127.0.0.1:\d+ within 0.3 s"),
        ([0, 1, 1], [3, 3, 3], "two processes have --run.process-id 1: expected each of 0 to 2 once"),
        ([0, 1], [2, 3], "process 1 has --run.num-processes 3, and process 0 has 2"),
    ],
)
def test_who_is_missing_is_named(indices, counts, message):
    timeout = 0.3 if "0.3" in message else 30
    for said in outcomes(indices, counts, timeout):
        with pytest.raises(UserError, match=message):
            raise UserError(said)


def test_two_of_index_0():
    where = address()
    _, _, port = where.rpartition(":")
    with socket.create_server(("", int(port))), pytest.raises(UserError, match=r"cannot listen on port .* 0\?"):
        meet(where, 2, 0, 30)
