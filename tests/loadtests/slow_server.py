"""A server whose times are known: every answer takes `latency_s`, and at `stall_at_s` after the first request it does nothing
for `stall_s`. `python slow_server.py PORT_FILE LATENCY_S STALL_AT_S STALL_S`; it writes its port to the file.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
SCHEMA = b'{"models":["slow"],"schema":{"features":[{"name":"x","kind":"number","missing":"refuse","low":0,"high":1}]}}'


class Slow:
    def __init__(self, latency_s: float, stall_at_s: float, stall_s: float) -> None:
        self.latency_s, self.stall_at_s, self.stall_s = latency_s, stall_at_s, stall_s
        self.stalling = False

    def due(self) -> None:
        """Once, with the first request: the whole process stands still later on, as one that pages or collects garbage."""
        if self.stall_s and not self.stalling:
            self.stalling = True
            asyncio.get_running_loop().call_later(self.stall_at_s, time.sleep, self.stall_s)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if head.startswith(b"GET"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(SCHEMA) + SCHEMA)
                    continue
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                self.due()
                await asyncio.sleep(self.latency_s)
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def main(port_file: Path, slow: Slow) -> None:
    server = await asyncio.start_server(slow.serve, "127.0.0.1", 0, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    port_file.with_suffix(".new").write_text(str(port), encoding="ascii")
    os.replace(port_file.with_suffix(".new"), port_file)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Slow(*map(float, sys.argv[2:]))))
