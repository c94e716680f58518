"""schemathesis over the server's own OpenAPI, every check: `python openapi.py PORT EXAMPLES`. Exits 0 without a failure."""

import subprocess
import sys
import tempfile
from pathlib import Path


def main(port, examples):
    here = Path(__file__).resolve().parent
    call = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(here / "schemathesis.toml"), "run"]
    call += [f"http://127.0.0.1:{port}/openapi.json", "--checks", "all", "--max-examples", examples, "--seed", "1"]
    call += ["--request-timeout", "20", "--workers", "1", "--no-color", "--generation-database", "none"]
    with tempfile.TemporaryDirectory() as folder:  # it keeps what it found in the folder that it runs in
        return subprocess.run(call, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
