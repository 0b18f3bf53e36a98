"""Passes on what native code prints on stderr, and says in one line that JAX ends a process because it lost another.

A program by itself, which `processes.start` runs: JAX aborts the process from a thread of its own, with pages of stack
traces, and Python has no moment to say anything.
"""

import re
import signal
import sys

HEADER = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ ([\w.]+):\d+\]")  # of a record; other lines go on with it


def main(farewell: str) -> None:
    """Copies stdin to stderr until its end, without the records of JAX's coordination service."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when the process does
    dropped, last = False, f"{farewell}\n".encode()
    for line in sys.stdin.buffer:
        if header := HEADER.match(line):
            dropped = header[1].startswith((b"coordination_service", b"client.h"))
            line = last if dropped and line.startswith(b"F") else line
        if line == last or not (dropped or line.startswith(b"[Gloo]")):
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
        if line == last:  # once
            break
    for _ in sys.stdin.buffer:
        pass


if __name__ == "__main__":
    main(sys.argv[1])
