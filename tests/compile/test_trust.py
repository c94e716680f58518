"""What is signed is served as it was signed; what is not, only where nobody asked for more than hashes."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cases import MIXED, mixed_rows, train_mixed
from hostile import ROOT, copy, forge
from hypothesis import given
from hypothesis import strategies as st

from compile import build_bundle, bundle, kernel, keys, open_predictor, signing, trust
from compile.errors import BundleRefused, KeyRefused
from compile.trust import Trust
from serving import routes

FILES = ["manifest.json", "measured.json", "model.flat", "model.onnx", "model.sig", "model.treelite", "probe.npz"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user of this host who trusts nobody yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("COPPICE_TRUST", raising=False)
    monkeypatch.delenv("COPPICE_SIGNING_KEY", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the key pairs `old` and `new`."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("old", "new"):
        keys.new_key(folder, name)
    return folder


@pytest.fixture(scope="module")
def signed(tiny: Path, pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, signed by `old`. Not to be changed."""
    path = copy(tiny, tmp_path_factory.mktemp("signed"))
    signing.sign(path, pair / "old.key")
    return path


def by(pair: Path, *names: str) -> dict[str, Path]:
    return {keys.fingerprint(pair / f"{name}.pub"): pair / f"{name}.pub" for name in names}


def coppice(*call: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coppice", *map(str, call)]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, capture_output=True, text=True, check=False
    )


def test_a_new_key_is_secret_and_is_called_by_the_hash_of_its_file(home: Path) -> None:
    folder = home / "config" / "coppice" / "keys"
    made = coppice("keys", "new", "release")
    assert made.returncode == 0, made.stderr
    assert stat.S_IMODE((folder / "release.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    digest = subprocess.run(["sha256sum", folder / "release.pub"], capture_output=True, text=True, check=True).stdout[
        :64
    ]
    assert made.stdout.split()[0] == digest == keys.fingerprint(folder / "release.pub")
    assert re.search(rf"{digest} +signs +release", coppice("keys", "list").stdout)
    before = (folder / "release.key").read_bytes()
    again = coppice("keys", "new", "release")
    assert again.returncode == 2
    assert "never overwritten" in again.stderr
    assert (folder / "release.key").read_bytes() == before


def test_a_fingerprint_does_not_depend_on_line_ends(pair: Path, home: Path) -> None:
    text = (pair / "old.pub").read_bytes()
    for spelled in (text.replace(b"\n", b"\r\n"), b"\n" + text + b"\n\n", text.rstrip()):
        (home / "spelled.pub").write_bytes(spelled)
        assert keys.fingerprint(home / "spelled.pub") == keys.fingerprint(pair / "old.pub")


@pytest.mark.parametrize("text", [b"", b"\0" * 100_000, b"-----BEGIN PUBLIC KEY-----\n*\n-----END PUBLIC KEY-----\n"])
def test_a_file_that_is_no_key_is_refused_by_its_name(text: bytes, pair: Path, home: Path) -> None:
    (home / "x.pub").write_bytes(text)
    for call in (
        lambda: keys.fingerprint(home / "x.pub"),
        lambda: keys.add_key(home / "keys", home / "x.pub"),
        lambda: keys.public_half(home / "x.pub"),
        lambda: keys.public_half(pair / "old.pub"),
        lambda: Trust(home).fingerprints(),
        lambda: keys.new_key(home, "../x"),
    ):
        with pytest.raises(KeyRefused, match=r"x\.pub|old\.pub|\.\./x"):
            call()


def test_what_is_signed_verifies_also_by_the_library_alone(signed: Path, pair: Path) -> None:
    import model_signing

    assert signing.check(signed, by(pair, "old")) in by(pair, "old")
    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=pair / "old.pub")
    verifier.verify(signed, signed / "model.sig")
    assert open_predictor(signed).manifest == bundle.read(signed)


@pytest.mark.parametrize("file", FILES)
def test_no_byte_of_a_signed_bundle_can_be_another(
    file: str, signed: Path, pair: Path, tmp_path: Path, size: Callable[[int, int], int]
) -> None:
    """Every file, measured.json and the signature itself: none of its bytes is insignificant."""
    spoilt = copy(signed, tmp_path)
    data = (spoilt / file).read_bytes()
    trusted = by(pair, "old", "new")
    for position in range(0, len(data), max(1, len(data) // size(60, len(data)))):
        with (spoilt / file).open("r+b") as opened:
            os.pwrite(opened.fileno(), bytes([data[position] ^ (1 + position % 255)]), position)
        with pytest.raises(BundleRefused, match=re.escape(str(spoilt / file))):
            signing.check(spoilt, trusted)
        (spoilt / file).write_bytes(data)
    signing.check(spoilt, trusted)


@given(data=st.data())
def test_a_signature_has_one_spelling(
    data: st.DataObject, signed: Path, pair: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spoilt = copy(signed, tmp_path_factory.mktemp("spoilt"))
    honest = (spoilt / "model.sig").read_bytes()
    at, cut = data.draw(st.integers(0, len(honest))), data.draw(st.integers(0, 40))
    put = data.draw(st.binary(max_size=4) | st.sampled_from([b" ", b"\n", b",", b'"keyid":"",', b"=", b"\\u0041"]))
    spelled = honest[:at] + put + honest[at + cut :]
    (spoilt / "model.sig").write_bytes(spelled)
    if spelled == honest:
        signing.check(spoilt, by(pair, "old"))
    else:
        with pytest.raises(BundleRefused, match=r"model\.sig"):
            signing.check(spoilt, by(pair, "old"))


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"null", b"[" * 900_000, b"\xff", b'{"mediaType":' * 60_000, b"\0" * (2 << 20)]
)
def test_a_signature_that_is_garbage_is_refused(text: bytes, signed: Path, pair: Path, tmp_path: Path) -> None:
    spoilt = copy(signed, tmp_path)
    (spoilt / "model.sig").write_bytes(text)
    with pytest.raises(BundleRefused, match=r"model\.sig"):
        signing.check(spoilt, by(pair, "old"))
    assert signing.signer(spoilt) is None


def test_another_bundles_signature_is_none_of_this(signed: Path, pair: Path, release: Any, tmp_path: Path) -> None:
    other = copy(release.challenger, tmp_path)
    bundle.place_signature(other, (signed / "model.sig").read_bytes())
    with pytest.raises(BundleRefused, match="not what was signed"):
        signing.check(other, by(pair, "old"))
    bare = copy(signed, tmp_path)
    (bare / "measured.json").unlink()
    with pytest.raises(BundleRefused, match=r"measured\.json: is missing, and was signed"):
        signing.check(bare, by(pair, "old"))


def test_a_signature_that_exempts_a_file_is_refused(tiny: Path, pair: Path, tmp_path: Path) -> None:
    """The library lets a signer leave files out; here each one is covered."""
    import model_signing
    import msgspec

    path = copy(tiny, tmp_path)
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=["model.sig", "measured.json"])
    signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=pair / "old.key")
    signer.set_hashing_config(hashing).sign(path, path / "model.sig")
    assert (
        msgspec.json.encode(msgspec.json.decode((path / "model.sig").read_bytes())) == (path / "model.sig").read_bytes()
    )
    with pytest.raises(BundleRefused, match=r"measured\.json: is not part of what was signed"):
        signing.check(path, by(pair, "old"))


def test_keys_are_rotated_by_trusting_both_for_a_while(signed: Path, pair: Path, tmp_path: Path) -> None:
    path = copy(signed, tmp_path)
    with pytest.raises(BundleRefused, match=r"model\.sig: is by the key .* not trusted"):
        signing.check(path, by(pair, "new"))
    assert signing.check(path, by(pair, "old", "new")) in by(pair, "old")
    signing.sign(path, pair / "new.key")
    assert signing.check(path, by(pair, "old", "new")) in by(pair, "new")
    assert signing.check(path, by(pair, "new")) in by(pair, "new")
    with pytest.raises(BundleRefused, match="not trusted"):
        signing.check(path, by(pair, "old"))


def test_a_hint_of_a_trusted_key_is_not_its_signature(signed: Path, pair: Path, tmp_path: Path) -> None:
    path = copy(signed, tmp_path)
    (old,), (new,) = by(pair, "old"), by(pair, "new")
    (path / "model.sig").write_bytes((path / "model.sig").read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(BundleRefused, match=r"model\.sig: is not a signature by the key"):
        signing.check(path, by(pair, "old", "new"))


def test_signing_again_changes_nothing_and_never_half_a_file(tiny: Path, pair: Path, tmp_path: Path) -> None:
    path = copy(tiny, tmp_path)
    with pytest.raises(BundleRefused, match="is not signed"):
        signing.check(path, by(pair, "old"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: signing.sign(path, pair / "old.key"), range(4)))
    written = (path / "model.sig").read_bytes()
    signing.sign(path, pair / "old.key")
    assert (path / "model.sig").read_bytes() == written
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".draft")] == []
    (path / "model.flat").write_bytes(b"")
    with pytest.raises(BundleRefused, match=r"model\.flat"):
        signing.sign(path, pair / "old.key")


def test_a_signature_is_published_with_what_it_covers_alone(
    signed: Path, tiny: Path, pair: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    bundle.publish(tiny, store)
    published = bundle.locate(store, tiny.name)
    assert bundle.signature(published) is None
    bundle.publish(signed, store)
    signing.check(published, by(pair, "old"))
    (published / "measured.json").write_bytes(b"{}")
    (published / "model.sig").unlink()
    bundle.publish(signed, store)
    assert bundle.signature(published) is None  # it covers another measured.json


def test_hashed_asks_for_no_signature_and_signed_for_a_verified_one(signed: Path, tiny: Path, pair: Path) -> None:
    Trust.of("hashed").require(tiny)
    Trust.of("hashed").admit([tiny])
    strict = Trust.of(f"signed:{pair}")
    with pytest.raises(BundleRefused, match="not verified on this host"):
        strict.require(signed)
    strict.admit([signed])
    strict.require(signed)
    with pytest.raises(BundleRefused, match=r"model\.sig: is missing: the bundle is not signed"):
        strict.admit([signed, tiny])
    Trust.of(f"signed:{pair / 'old.pub'}").require(signed)
    with pytest.raises(BundleRefused, match="not verified"):
        Trust.of(f"signed:{pair / 'new.pub'}").require(signed)  # verified, but by a key that is trusted no longer
    for text in ("", "sign", "hashed:x", "SIGNED"):
        with pytest.raises(KeyRefused, match="COPPICE_TRUST"):
            Trust.of(text)
    with pytest.raises(KeyRefused, match="keys trust"):
        Trust.of("signed").admit([signed])


def test_a_record_is_this_hosts_or_none(signed: Path, pair: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = Trust(pair)
    strict.admit([signed])
    trust.record_built("ab" * 32)
    folder = trust.state_folder()
    record = folder / f"bundle-{signed.name}"
    assert stat.S_IMODE((folder / "host.key").stat().st_mode) == 0o600
    honest = record.read_bytes()
    for text in (b"", honest[:-2], honest.replace(b"\n", b"", 1), bytes([honest[0] ^ 1]) + honest[1:], b"\xff\n\xff\n"):
        record.write_bytes(text)
        with pytest.raises(BundleRefused, match="not verified"):
            strict.require(signed)
    record.write_bytes(honest)
    strict.require(signed)
    (folder / f"bundle-{'ab' * 32}").write_bytes(honest)  # another's record under this name
    with pytest.raises(BundleRefused, match="not verified"):
        strict.require(signed.with_name("ab" * 32))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "other"))  # another host, to which the records are copied
    trust.record_built("cd" * 32)
    (trust.state_folder() / record.name).write_bytes(honest)
    with pytest.raises(BundleRefused, match="not verified"):
        strict.require(signed)
    (trust.state_folder() / "host.key").chmod(0o644)
    with pytest.raises(KeyRefused, match=r"host\.key: must be"):
        strict.require(signed)


def test_two_that_make_the_host_key_at_once_make_one(home: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(trust.record_built, [f"{number:064x}" for number in range(16)]))
    for number in range(16):
        trust.may_execute(home / "model.so", f"{number:064x}")


def test_a_library_runs_if_it_was_built_here_or_came_signed(tiny: Path, pair: Path, home: Path) -> None:
    library = next(path for path in kernel._candidates() if path.is_file()).read_bytes()
    path = forge(tiny, home, {"model.so": library})
    sha256 = bundle.read(path).files["model.so"].sha256
    with pytest.raises(BundleRefused, match=r"model\.so: is a native library"):
        trust.may_execute(path / "model.so", sha256)
    signing.sign(path, pair / "old.key")
    with pytest.raises(BundleRefused, match=r"model\.so: is a native library"):
        trust.may_execute(path / "model.so", sha256, Trust(pair))  # signed, but nobody has looked yet
    Trust(pair).admit([path])
    trust.may_execute(path / "model.so", sha256, Trust(pair))
    for distrusting in (None, Trust(pair / "new.pub")):
        with pytest.raises(BundleRefused, match=r"model\.so: is a native library"):
            trust.may_execute(path / "model.so", sha256, distrusting)
    trust.record_built("ef" * 32)
    trust.may_execute(home / "model.so", "ef" * 32)


def test_a_native_backend_serves_only_where_it_may_run(home: Path) -> None:
    built = build_bundle(
        train_mixed("xgboost", 3),
        MIXED,
        mixed_rows(50),
        home / "built",
        name="m",
        version="1",
        backends=("onnx", "native"),
    )
    assert open_predictor(built, "native").backend == "native"
    (trust.state_folder() / f"built-{next(built.glob('*.so')).stem.removeprefix('model-')}").unlink()
    with pytest.raises(BundleRefused, match="neither built on this host nor signed"):
        open_predictor(built, "native")
    assert open_predictor(built).backend in ("treelite", "onnx")


def test_workers_decide_with_the_standard_library_alone() -> None:
    code = "import compile.trust, sys; print(*{name.split('.')[0] for name in sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(ran.stdout.split()) & {"model_signing", "sigstore", "cryptography", "numpy", "msgspec", "pydantic"}


def test_without_the_extra_a_signature_is_refused_in_one_line(signed: Path, pair: Path, home: Path) -> None:
    (home / "model_signing.py").write_text("raise ModuleNotFoundError(name='model_signing')", encoding="utf-8")
    ran = coppice("verify", signed, "--trust", f"signed:{pair}", PYTHONPATH=f"{home}:{ROOT}")
    assert ran.returncode == 2
    assert "coppice[trust]" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1, ran.stderr


def test_verify_and_inspect_tell_and_refuse(signed: Path, tiny: Path, pair: Path, tmp_path: Path) -> None:
    plain = coppice("verify", tiny)
    assert plain.returncode == 0, plain.stderr
    assert re.search(r"signature +none", plain.stdout)
    assert len(re.findall("equal bit for bit", plain.stdout)) == 2
    assert "not checked" in coppice("verify", signed).stdout
    strict = coppice("verify", signed, "--trust", f"signed:{pair}")
    assert strict.returncode == 0, strict.stderr
    assert re.search(r"signature +by old .* ok", strict.stdout)
    unsigned = coppice("verify", tiny, COPPICE_TRUST=f"signed:{pair}")
    assert unsigned.returncode == 2
    assert "model.sig: is missing" in unsigned.stderr
    spoilt = copy(tiny, tmp_path)
    os.truncate(spoilt / "probe.npz", 100)
    for verb in ("verify", "inspect"):
        ran = coppice(verb, spoilt)
        assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1), ran.stderr
        assert "probe.npz" in ran.stderr
    told = coppice("inspect", signed).stdout
    for word in ("m version 1", "xgboost", "age", "premium", "onnxruntime", "0 of", "serves", signed.name):
        assert word in told
    assert '"signer": "' in coppice("inspect", signed, "--json").stdout


def test_what_a_manifest_says_can_not_command_a_terminal(tiny: Path, tmp_path: Path) -> None:
    forged = forge(tiny, tmp_path, change=lambda m: m | {"lineage": {"run": "\x1b[2J\u202egone"}, "version": "1\r2"})
    told = coppice("inspect", forged).stdout
    assert "gone" in told
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", told)


def test_routes_name_only_signed_bundles_where_told_to(release: Any, tmp_path: Path, pair: Path) -> None:
    store = shutil.copytree(release.store, tmp_path / "store")
    publish = ("routes", "publish", "mixed", "--arm", f"champion={release.champion.name}", "--store", store)
    refused = coppice(*publish, COPPICE_TRUST=f"signed:{pair}")
    assert refused.returncode == 2
    assert "is not signed" in refused.stderr
    assert coppice("sign", store / "bundles" / release.champion.name, "--key", pair / "old.key").returncode == 0
    assert coppice(*publish, COPPICE_TRUST=f"signed:{pair}").returncode == 0


def test_a_server_that_asks_for_signatures_serves_nothing_else(
    release: Any, pair: Path, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    store = shutil.copytree(release.store, tmp_path / "store")
    knobs = {"COPPICE_STORE": str(store), "COPPICE_PORT": "0", "COPPICE_TRAFFIC": str(tmp_path / "traffic")}
    signing.sign(store / "bundles" / release.champion.name, pair / "old.key")
    refused = coppice("serve", COPPICE_TRUST=f"signed:{pair}", **knobs)
    assert refused.returncode == 2
    assert f"{release.challenger.name}/model.sig" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    signing.sign(store / "bundles" / release.challenger.name, pair / "new.key")
    running = serve(store, trust=f"signed:{pair}", sync_s=0.05)
    assert running.ask("/healthz")[0] == 200

    unsigned = forge(release.champion, store / "bundles", change=lambda manifest: manifest | {"version": "9"})
    now = routes.read(store, "mixed")
    change = {"generation": 2, "arms": {"champion": unsigned.name}, "slots": routes.split_slots({"champion": 1})}
    routes.publish(store, msgspec.structs.replace(now, **change, salt=routes.new_salt()))
    until(lambda: "is not signed" in json.loads(running.ask("/readyz")[2])["sync"]["refused"].get("mixed 2", ""))
    signing.sign(unsigned, pair / "new.key")
    until(lambda: json.loads(running.ask("/readyz")[2])["generations"] == {"mixed": 2})
    for pid in [running.process.pid, *running.workers()]:
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
        assert "cryptography" not in maps


def until(claim: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.05)
