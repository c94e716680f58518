"""A bucket of moto's server, a process of its own on loopback."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAME = "releases"


@dataclass
class Bucket:
    address: str
    endpoint: str
    process: subprocess.Popen[bytes]

    def client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.endpoint)

    def put(self, key: str, content: bytes) -> None:
        self.client().put_object(Bucket=NAME, Key=f"prod/{key}", Body=content)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


@contextmanager
def bucket_server(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        patch.setenv(name, value)
    log = folder / "moto.log"
    with log.open("wb") as out:
        code = "import sys; from moto.server import main; main(sys.argv[1:])"
        call = [sys.executable, "-W", "ignore", "-c", code, "-H", "127.0.0.1", "-p", "0"]
        process = subprocess.Popen(call, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 60
        while "Running on http://127.0.0.1:" not in log.read_text(encoding="utf-8"):
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.05)
        port = log.read_text(encoding="utf-8").split("Running on http://127.0.0.1:")[1].split()[0]
        endpoint = f"http://127.0.0.1:{port}"
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        made = Bucket(f"s3://{NAME}/prod", endpoint, process)
        made.client().create_bucket(Bucket=NAME)
        yield made
    finally:
        process.kill()
        process.wait(10)
