"""The release store in S3: the extra `s3`; for the sync process and the command line, never in a worker.

Keys are those of the folder, under the prefix. A generation is put with `If-None-Match: *`, which S3 refuses where the key
exists. Of a bundle the manifest is put last: who sees it sees the whole bundle. Address and credentials are the AWS
client's own business: AWS_ENDPOINT_URL, AWS_REGION, AWS_PROFILE and so on.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile import bundle
from compile.errors import BundleRefused
from serving.errors import GenerationTaken, RoutesRefused, SettingsRefused, StoreUnreachable
from serving.store import file_name, generation_of

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

CHUNK = 1 << 20
MAX_ROUTES_BYTES = 8 << 20
KEPT_BUNDLES = 32  # in the local copy, besides those that are served


class S3Store:
    def __init__(self, bucket: str, prefix: str) -> None:
        """Raises SettingsRefused where the extra is not installed. Nothing is asked of S3 yet."""
        try:
            import boto3
            from botocore.config import Config
        except ModuleNotFoundError as absent:
            raise SettingsRefused(f"COPPICE_STORE: s3:// needs {absent.name!r}: pip install 'coppice[s3]'") from None
        retries: dict[str, Any] = {"total_max_attempts": 2, "mode": "standard"}
        self._client: Any = boto3.session.Session().client(
            "s3", config=Config(connect_timeout=5, read_timeout=15, retries=retries)
        )
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self.name = f"s3://{bucket}/{self._prefix}".rstrip("/")

    def models(self) -> list[str]:
        begin = f"{self._prefix}routes/"
        found = self._pages(Prefix=begin, Delimiter="/")
        return sorted(
            entry["Prefix"].removeprefix(begin).rstrip("/")
            for page in found
            for entry in page.get("CommonPrefixes", ())
        )

    def generations(self, model: str) -> list[int]:
        return self._after(model, "")

    def newest(self, model: str, known: int) -> int:
        """One listing that begins where the last one ended."""
        return max(self._after(model, file_name(known) if known else ""), default=known)

    def read(self, model: str, generation: int) -> bytes | None:
        got = self._get(self._routes(model, generation))
        if got is None:
            return None
        if got["ContentLength"] > MAX_ROUTES_BYTES:
            raise RoutesRefused(f"{model}/{file_name(generation)}: has {got['ContentLength']} bytes")
        with self._reached():
            content: bytes = got["Body"].read()
        return content

    def create(self, model: str, generation: int, content: bytes) -> str:
        key = self._routes(model, generation)
        try:
            with self._reached():
                self._client.put_object(
                    Bucket=self._bucket, Key=key, Body=content, IfNoneMatch="*", ContentType="application/json"
                )
        except _Refused as refused:
            if refused.code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                raise GenerationTaken(f"{model}: generation {generation} was just published by another") from None
            raise StoreUnreachable(f"{self.name}: {refused}") from None
        return f"s3://{self._bucket}/{key}"

    def holds(self, digest: str) -> bool:
        try:
            with self._reached():
                self._client.head_object(Bucket=self._bucket, Key=self._bundle(digest) + bundle.MANIFEST)
        except _Refused as refused:
            if refused.is_absence:
                return False
            raise StoreUnreachable(f"{self.name}: {refused}") from None
        return True

    def put(self, path: Path) -> None:
        manifest = bundle.read(path)
        beside = [name for name in (bundle.MEASURED, bundle.SIGNATURE) if (path / name).is_file()]
        for name in [*manifest.files, *beside, bundle.MANIFEST]:
            with self._told(), (path / name).open("rb") as file:
                self._client.put_object(Bucket=self._bucket, Key=self._bundle(path.name) + name, Body=file)

    def fetch(self, digest: str, cache: Path, beat: Callable[[], None]) -> Path:
        """Into the local copy, whole or not at all; what is there already and sound is not fetched again."""
        final = bundle.locate(cache, digest)
        if final.is_dir():
            try:
                bundle.read(final)
            except BundleRefused:
                shutil.rmtree(final)
            else:
                os.utime(final)
                return final
        final.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=final.parent, prefix=".draft-"))
        try:
            self._pull(digest, draft / digest, beat)
            bundle.read(draft / digest)
            (draft / digest).chmod(0o755)
            (draft / digest).rename(final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return final

    def _pull(self, digest: str, folder: Path, beat: Callable[[], None]) -> None:
        folder.mkdir()
        begin = self._bundle(digest)
        listed = [entry for page in self._pages(Prefix=begin) for entry in page.get("Contents", ())]
        if not 0 < len(listed) <= bundle.MAX_FILES + 3:
            raise BundleRefused(f"{self.name}/bundles/{digest}: has {len(listed)} files; is it there?")
        for entry in listed:
            name = entry["Key"].removeprefix(begin)
            if not bundle.NAME.fullmatch(name) or entry["Size"] > bundle.MAX_FILE_BYTES:
                raise BundleRefused(f"{self.name}/bundles/{digest}/{name[:80]}: can't be part of a bundle")
            got = self._get(entry["Key"])
            if got is None:
                raise BundleRefused(f"{self.name}/bundles/{digest}/{name}: is gone")
            left = int(entry["Size"])
            with (folder / name).open("wb") as file:
                while chunk := self._chunk(got["Body"]):
                    left -= len(chunk)
                    if left < 0:
                        raise BundleRefused(f"{self.name}/bundles/{digest}/{name}: is longer than it said")
                    file.write(chunk)
                    beat()

    def _chunk(self, body: Any) -> bytes:
        with self._told():
            chunk: bytes = body.read(CHUNK)
        return chunk

    def _after(self, model: str, last: str) -> list[int]:
        begin = f"{self._prefix}routes/{model}/"
        after = {"StartAfter": begin + last} if last else {}
        entries = (entry for page in self._pages(Prefix=begin, **after) for entry in page.get("Contents", ()))
        return sorted(number for entry in entries if (number := generation_of(entry["Key"].removeprefix(begin))))

    def _pages(self, **query: str) -> list[dict[str, Any]]:
        with self._told():
            return list(self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, **query))

    def _get(self, key: str) -> dict[str, Any] | None:
        try:
            with self._reached():
                got: dict[str, Any] = self._client.get_object(Bucket=self._bucket, Key=key)
                return got
        except _Refused as refused:
            if refused.is_absence:
                return None
            raise StoreUnreachable(f"{self.name}: {refused}") from None

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Where any refusal means that the store can't be used."""
        try:
            with self._reached():
                yield
        except _Refused as refused:
            raise StoreUnreachable(f"{self.name}: {refused}") from None

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """The client's exceptions as ours. Raises _Refused for what S3 answered, StoreUnreachable where it did not."""
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ClientError as refused:
            raise _Refused(refused) from None
        except (BotoCoreError, HTTPError) as failure:
            raise StoreUnreachable(f"{self.name}: {str(failure).splitlines()[0]}") from None

    def _bundle(self, digest: str) -> str:
        return f"{self._prefix}bundles/{digest}/"

    def _routes(self, model: str, generation: int) -> str:
        return f"{self._prefix}routes/{model}/{file_name(generation)}"


class _Refused(Exception):
    """S3 answered, and not with what was asked for."""

    def __init__(self, refused: ClientError) -> None:
        super().__init__(str(refused).splitlines()[0])
        self.code = str(refused.response.get("Error", {}).get("Code", ""))

    @property
    def is_absence(self) -> bool:
        return self.code in ("404", "NoSuchKey", "NotFound")


def tidy(cache: Path, served: set[str]) -> None:
    """Remove drafts that a killed process left, and bundles that nothing served needs, the longest unused first."""
    bundles = cache / "bundles"
    for draft in bundles.glob(".draft-*"):
        shutil.rmtree(draft, ignore_errors=True)
    unused = sorted(
        (path for path in bundles.glob("*") if path.name not in served), key=lambda path: path.stat().st_mtime
    )
    for path in unused[: max(0, len(unused) - KEPT_BUNDLES)]:
        shutil.rmtree(path, ignore_errors=True)
