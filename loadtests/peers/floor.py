"""What the kernel and the event loop cost by themselves: uvloop, and a protocol that answers whatever it reads with a constant.

python -m loadtests.peers.floor [--bytes 420] --port 18761
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import uvloop


class Constant(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: Any) -> None:
        self._write = transport.write

    def data_received(self, data: bytes) -> None:  # noqa: ARG002
        self._write(self._answer)


def constant(size: int) -> bytes:
    """An answer of `size` bytes, or of the fewest that make one."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    body = b"x" * max(0, size - len(head % 100))
    return head % len(body) + body


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bytes", type=int, default=420, help="of an answer")
    given = parser.parse_args()
    answer = constant(given.bytes)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Constant(answer), "127.0.0.1", given.port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
