"""The deployment knobs: read once from the environment, then a frozen value."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from serving.errors import SettingsRefused

PREFIX = "COPPICE_"
OTHERS = {
    "COPPICE_SIGNING_KEY"
}  # of `coppice compile` and `sign`: may be set where a server is started, which ignores it


class Settings(BaseModel):
    """Each field is the environment variable of the same name in capitals, prefixed `COPPICE_`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: Annotated[str, BeforeValidator(str)] = Field(
        default="var/releases", description="release store: the folder of bundles and routes, or `s3://bucket/prefix`"
    )
    trust: str = Field(
        default="hashed",
        pattern="^(hashed|signed(:.+)?)$",
        description="`signed`: serve only what a trusted key signed; `signed:PATH`: keys not in `~/.config/coppice/keys`",
    )
    sync_s: float = Field(default=0.5, gt=0, le=3600, description="seconds between two looks at the release store")
    traffic: Path = Field(
        default=Path("var/traffic"),
        description="folder of the traffic log, the shared pages, and what was pulled from S3",
    )
    views: str = Field(
        default="var/views",
        description="where models with a [lookup] find their entities: a folder of views, or `redis://host:port/db`",
    )
    admin_keys: str = Field(
        default="",
        description="who may change routes over HTTP: a file of `SHA256 NAME` lines, or hashes; empty: nobody",
    )
    api_keys: str = Field(
        default="", description="who may ask for scores: a file of `SHA256 NAME` lines, or hashes; empty: everybody"
    )
    access_log: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of answers told on stdout, a JSON line each, besides 5xx and 429; 0: none",
    )
    model: str = Field(
        default="", description="model that `/predict` serves; empty: the only one that the store routes, if it is"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on; `unix:PATH` for a socket there")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one and prints it")
    tls_cert: str = Field(default="", description="PEM file of the certificate and its chain; empty: plain HTTP")
    tls_key: str = Field(default="", description="PEM file of the certificate's private key; empty: in the same file")
    workers: int = Field(default=0, ge=0, le=256, description="worker processes; 0: one for each CPU of the cgroup")
    http: Literal["direct", "python", "asgi"] = Field(
        default="direct",
        description="`direct` answers in the protocol, the usual request in C; `python` without C; `asgi` in FastAPI",
    )
    unit_field: str = Field(
        default="", description="body field that names the experiment's unit; empty: `x-unit`, then the id"
    )
    max_body_bytes: int = Field(default=1 << 20, ge=64, description="longest request body, in bytes; longer is a 413")
    max_batch_bytes: int = Field(
        default=16 << 20,
        ge=64,
        description="longest body of `/predict/batch` and `/feedback`, in bytes; longer is a 413",
    )
    max_rows: int = Field(default=10_000, ge=1, description="most rows that one request may have; more is a 413")
    max_batch_rows: int = Field(default=64, ge=1, le=4096, description="most rows that one call of the model scores")
    max_queue_rows: int = Field(default=1024, ge=1, description="rows that may wait in a lane; the next is a 503")
    deadline_ms: int = Field(
        default=0, ge=0, le=999_999_999, description="ms from arrival within which to answer, else 503; 0: no deadline"
    )
    inline_budget_us: float = Field(
        default=300.0, ge=0, description="cost of one row, in µs, up to which it is scored at once"
    )
    keep_alive_s: float = Field(
        default=75.0, gt=0, description="seconds an idle connection is kept; above the balancer's"
    )
    drain_delay_s: float = Field(
        default=1.0, ge=0, description="seconds of serving on, not ready, between SIGTERM and closing"
    )
    stop_timeout_s: float = Field(
        default=20.0, gt=0, description="seconds from closing to exit before a worker is killed"
    )

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **flags: Any) -> Settings:
        """The environment, overridden by the flags that are not None. Raises SettingsRefused, naming the variable."""
        environ = os.environ if environ is None else environ
        known = {PREFIX + name.upper(): name for name in cls.model_fields}
        unknown = sorted(
            name for name in environ if name.startswith(PREFIX) and name not in known and name not in OTHERS
        )
        if unknown:
            raise SettingsRefused(f"{unknown[0]}: no such setting; known are {', '.join(known)}")
        values: dict[str, Any] = {known[name]: value for name, value in environ.items() if name in known}
        values.update({name: value for name, value in flags.items() if value is not None})
        try:
            return cls.model_validate(values)
        except ValidationError as refused:
            first = refused.errors()[0]
            name = PREFIX + str(first["loc"][0]).upper()
            raise SettingsRefused(f"{name}: {first['msg']}, got {first['input']!r}") from None


def cgroup_cpus() -> int:
    """CPUs this process may really use: its affinity, cut by the cgroup's quota. At least 1."""
    available = len(os.sched_getaffinity(0))
    quota = _quota(Path("/sys/fs/cgroup/cpu.max")) or _quota_v1(Path("/sys/fs/cgroup/cpu"))
    return max(1, min(available, quota or available))


def _quota(path: Path) -> int | None:
    try:
        limit, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) // int(period)


def _quota_v1(folder: Path) -> int | None:
    try:
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return limit // period if limit > 0 else None
