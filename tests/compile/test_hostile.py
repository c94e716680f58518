"""Opening is safe on hostile bytes: a bundle opens as what its digest names, or is refused by the name of a file."""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hostile import ROOT, copy, forge, opened_or_refused
from hypothesis import given
from hypothesis import strategies as st

from compile import bundle, open_predictor, plain_files
from compile.errors import BundleRefused
from compile.onnx_guard import refuse_programs

DIGESTED = ["manifest.json", "model.flat", "model.onnx", "model.treelite", "probe.npz"]


@pytest.mark.parametrize("file", DIGESTED)
def test_no_byte_can_be_another(file: str, tiny: Path, tmp_path: Path, size: Callable[[int, int], int]) -> None:
    """Of every file within the digest; measured.json is outside it, and only a signature covers it (test_trust)."""
    spoilt = copy(tiny, tmp_path)
    data = (spoilt / file).read_bytes()
    every = max(1, len(data) // size(150, len(data)))
    with (spoilt / file).open("r+b", buffering=0) as opened:
        for position in range(0, len(data), every):
            for flip in (1, 128, 1 + position % 255) if size(0, 1) else (1 + position % 255,):
                os.pwrite(opened.fileno(), bytes([data[position] ^ flip]), position)
                with pytest.raises(BundleRefused, match=re.escape(str(spoilt / file))):
                    bundle.read(spoilt)
            os.pwrite(opened.fileno(), data[position : position + 1], position)
    bundle.read(spoilt)


def _replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("model.flat", lambda p: (p / "model.flat").unlink()),
    "no manifest": ("manifest.json", lambda p: (p / "manifest.json").unlink()),
    "empty": ("model.onnx", lambda p: os.truncate(p / "model.onnx", 0)),
    "truncated": ("model.onnx", lambda p: os.truncate(p / "model.onnx", 700)),
    "longer": ("model.flat", lambda p: os.truncate(p / "model.flat", 2000)),
    "oversized": ("probe.npz", lambda p: os.truncate(p / "probe.npz", 1 << 40)),
    "oversized manifest": ("manifest.json", lambda p: os.truncate(p / "manifest.json", 1 << 40)),
    "extra": ("model.so", lambda p: (p / "model.so").write_bytes(b"")),
    "extra and hidden": (".extra", lambda p: (p / ".extra").write_bytes(b"")),
    "a folder beside": ("more", lambda p: (p / "more").mkdir()),
    "renamed": ("model.tree", lambda p: (p / "model.treelite").rename(p / "model.tree")),
    "swapped": ("model.flat", lambda p: _swap(p / "model.flat", p / "model.onnx")),
    "a link": ("model.flat", lambda p: _replaced(p / "model.flat", lambda f: f.symlink_to("model.onnx"))),
    "a link to itself": ("probe.npz", lambda p: _replaced(p / "probe.npz", lambda f: f.symlink_to("probe.npz"))),
    "a link to its twin": ("model.onnx", lambda p: _replaced(p / "model.onnx", lambda f: _moved(f, p.parent / "twin"))),
    "a linked manifest": (
        "manifest.json",
        lambda p: _replaced(p / "manifest.json", lambda f: _moved(f, p.parent / "twin.json")),
    ),
    "a linked measured.json": ("measured.json", lambda p: _replaced(p / "measured.json", lambda f: f.symlink_to("x"))),
    "a linked signature": ("model.sig", lambda p: (p / "model.sig").symlink_to("/etc/hostname")),
    "a FIFO": ("model.flat", lambda p: _replaced(p / "model.flat", os.mkfifo)),
    "a FIFO for a manifest": ("manifest.json", lambda p: _replaced(p / "manifest.json", os.mkfifo)),
    "a folder": ("model.onnx", lambda p: _replaced(p / "model.onnx", Path.mkdir)),
    "a socket": ("probe.npz", lambda p: _replaced(p / "probe.npz", lambda f: os.mknod(f, stat.S_IFSOCK | 0o600))),
    "another name": ("0" * 64, lambda p: p.rename(p.with_name("0" * 64))),
}


def _swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def _moved(file: Path, where: Path) -> None:
    where.write_bytes(b"")
    file.symlink_to(where)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoilt_folder_is_refused_by_the_files_name(fault: str, tiny: Path, tmp_path: Path) -> None:
    file, spoil = FAULTS[fault]
    spoilt = copy(tiny, tmp_path)
    spoil(spoilt)
    path = next(path for path in tmp_path.iterdir() if path.is_dir())
    tracemalloc.start()
    try:
        with pytest.raises(BundleRefused, match=re.escape(file)):
            open_predictor(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_folder_is_no_link_and_is_named_by_a_digest(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / tiny.name).symlink_to(tiny)
    with pytest.raises(BundleRefused, match="is a link"):
        bundle.read(tmp_path / tiny.name)
    for name in ("latest", tiny.name.upper(), tiny.name[:-1], "..", "nowhere\n"):
        with pytest.raises(BundleRefused, match="named by its digest"):
            bundle.read(tmp_path / name)
    (tmp_path / "store").symlink_to(tiny.parent)  # what leads to the bundle may be a link: a mounted store often is
    bundle.read(tmp_path / "store" / tiny.name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../model.flat",
            "/etc/hostname",
            "a/b",
            "a\\b",
            "..",
            ".",
            "",
            ".x",
            "a\nb",
            "a\0b",
            "\u202e",
            "é",
            "x" * 129,
        ),
        *("manifest.json", "measured.json", "model.sig"),
    ],
)
def test_a_manifest_can_name_nothing_outside_its_folder(name: str, tiny: Path, tmp_path: Path) -> None:
    def named(manifest: dict[str, Any]) -> dict[str, Any]:
        return manifest | {"files": manifest["files"] | {name: manifest["files"]["model.flat"]}}

    with pytest.raises(BundleRefused, match=r"manifest\.json: files:"):
        bundle.read(forge(tiny, tmp_path, change=named))


@pytest.mark.parametrize(
    "spell",
    [
        lambda encoded: encoded.replace(b'"model":"m"', b'"model":"other","model":"m"'),
        lambda encoded: encoded.replace(b'"model":"m"', b'"model":"\\u006d"'),
        lambda encoded: encoded.replace(b'"model":"m"', b'"model": "m"'),
        lambda encoded: encoded + b"\n",
        lambda encoded: msgspec.json.encode(dict(reversed(msgspec.json.decode(encoded).items()))),
        lambda encoded: b"\xef\xbb\xbf" + encoded,
        lambda encoded: encoded.replace(b'"model":"m"', b'"model":"\xff"'),
        lambda _: b"[" * 1_000_000,
        lambda _: b'{"format":2,"lineage":' + b'{"a":' * 1_000_000,
        lambda encoded: encoded.replace(b'"threshold":0.5', b'"threshold":1e999'),
        lambda encoded: encoded.replace(b'"format":2', b'"format":99'),
        lambda _: b"",
        lambda _: b"{}",
    ],
)
def test_a_manifest_has_one_spelling(spell: Callable[[bytes], bytes], tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleRefused, match=r"manifest\.json"):
        bundle.read(forge(tiny, tmp_path, spell=spell))


def test_a_manifest_of_many_names_costs_no_more_than_reading_it(tiny: Path, tmp_path: Path) -> None:
    def crowded(manifest: dict[str, Any]) -> dict[str, Any]:
        feature = manifest["schema"]["features"][0]
        names = [*(f"f{number}" for number in range(20_000)), "f0"]
        return manifest | {"schema": {"features": [feature | {"name": name} for name in names]}}

    with pytest.raises(BundleRefused, match="share this name"):
        bundle.read(forge(tiny, tmp_path, change=crowded))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(place for key, child in children for place in _places(child, (*path, key)))]


@given(data=st.data())
def test_a_manifest_of_any_content_opens_as_it_says_or_is_refused(
    data: st.DataObject, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def mutated(manifest: dict[str, Any]) -> Any:
        for _ in range(data.draw(st.integers(1, 3))):
            places = _places(manifest)[1:]
            *inside, last = data.draw(st.sampled_from(places))
            parent: Any = manifest
            for key in inside:
                parent = parent[key]
            what = data.draw(st.sampled_from(["replace", "nudge", "remove", "add"]))
            if what == "remove":
                del parent[last]
            elif what == "add" and isinstance(parent, dict):
                parent[data.draw(st.text(max_size=8))] = data.draw(JSON)
            elif what == "nudge":
                parent[last] = data.draw(st.sampled_from([0, -1, 1, 2**63, "", "x", 0.5, 1e308, [], {}, None]))
            else:
                parent[last] = data.draw(JSON)
            if len(_places(manifest)) == 1:
                break
        return manifest

    forged = forge(tiny, tmp_path_factory.mktemp("forged"), change=mutated)
    honest = open_predictor(tiny)
    for backend in ("treelite", "onnx"):
        predictor = opened_or_refused(forged, backend)
        if isinstance(predictor, BundleRefused):
            assert str(forged) in str(predictor)
        else:
            assert predictor.manifest.schema.width == honest.width
            assert (predictor.margin(honest.probe_rows) == honest.margin(honest.probe_rows)).all()
            scores = predictor.score(honest.probe_rows)
            assert np.abs(scores - honest.score(honest.probe_rows)).max() <= 2e-6


@pytest.mark.parametrize("file", ["model.flat", "model.onnx", "probe.npz"])
def test_files_of_any_content_are_opened_or_refused_and_never_crash(
    file: str, tiny: Path, release: Any, size: Callable[[int, int], int]
) -> None:
    """The digest is right, so that the bytes reach the parsers; in a process of its own, so that a signal is seen."""
    for seed, path in enumerate([tiny, release.challenger]):
        call = [sys.executable, "-m", "hostile", str(path), file, str(seed), str(size(150, 10_000))]
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        ran = subprocess.run(call, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, (ran.returncode, ran.stderr[-2000:])
        assert not ran.stderr, ran.stderr[-2000:]


def test_a_model_that_is_wider_than_its_schema_is_refused(tiny: Path, tmp_path: Path) -> None:
    """The kernel would read beyond the rows."""
    flat = np.frombuffer((tiny / "model.flat").read_bytes(), "<u4").copy()
    trees, nodes = int(flat[6]), int(flat[8])
    copies = int(flat[4]).bit_count()
    slots = flat[16 + 3 * trees :][: 3 * nodes].reshape(nodes, 3)[:, 1]
    slots[slots == copies * flat[3]] = copies * 1000  # what a leaf reads: beyond all copies of the row
    flat[3] = 1000
    with pytest.raises(BundleRefused, match=r"model\.flat: takes 1000 features"):
        open_predictor(forge(tiny, tmp_path, {"model.flat": flat.tobytes()}), "treelite")


def _graph(*nodes: Any, **graph: Any) -> bytes:
    from onnx import TensorProto, helper

    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 6])
    margin = helper.make_tensor_value_info("margin", TensorProto.FLOAT, ["n", 1])
    made = helper.make_graph(list(nodes), "forest", [rows], [margin], **graph)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 5)]
    return bytes(helper.make_model(made, opset_imports=opsets, ir_version=9).SerializeToString())


def _outside() -> bytes:
    """ONNX Runtime reads the file that a tensor names, from the working folder."""
    from onnx import TensorProto, helper

    tensor = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[1, 1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="README.md")
    return _graph(helper.make_node("Identity", ["secret"], ["margin"]), initializer=[tensor])


def _endless() -> bytes:
    from onnx import TensorProto, helper

    on, x = helper.make_tensor_value_info("on", TensorProto.BOOL, []), ("x", TensorProto.FLOAT, [1])
    again = helper.make_node("Identity", ["x"], ["y"])
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [])
    inputs = [count, on, helper.make_tensor_value_info(*x)]
    body = helper.make_graph([again], "body", inputs, [on, helper.make_tensor_value_info("y", *x[1:])])
    return _graph(helper.make_node("Loop", ["", "", "rows"], ["margin"], body=body))


def _hidden(honest: bytes) -> list[bytes]:
    """Second readings of one file: protobuf merges what is there twice, and takes the last of a name."""
    from onnx import ModelProto, helper

    model = ModelProto.FromString(honest)
    node = model.graph.node[0]
    twice = honest + _graph(helper.make_node("Identity", ["rows"], ["margin"]))
    renamed = honest.replace(node.SerializeToString(), node.SerializeToString() + b"\x22\x04Loop")
    node.attribute.append(helper.make_attribute("body", model.graph))
    return [twice, renamed, model.SerializeToString(), honest + b"\x0b\x0c", honest + b"\xca\x01\x00", honest + b"\x80"]


def test_a_graph_that_is_more_than_trees_never_reaches_the_runtime(tiny: Path, tmp_path: Path) -> None:
    honest = (tiny / "model.onnx").read_bytes()
    refuse_programs(honest)
    for hostile in (_outside(), _endless(), _graph(), b"", *_hidden(honest)):
        with pytest.raises(BundleRefused, match=r"model\.onnx: ValueError"):
            open_predictor(forge(tiny, tmp_path, {"model.onnx": hostile}), "onnx")


def _zip(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return out.getvalue()


def _npy(array: np.ndarray, **save: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array, **save)
    return out.getvalue()


def _probe(**arrays: bytes) -> list[tuple[str, bytes]]:
    plain = {"rows": _npy(np.zeros((2, 6))), "margins": _npy(np.zeros((2, 1))), "scores": _npy(np.zeros((2, 1)))}
    return [(f"{name}.npy", data) for name, data in (plain | arrays).items()]


CLAIM = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (999999999, 999999999), }"


@pytest.mark.parametrize(
    "archive",
    [
        _zip(_probe(rows=b"\0" * (64 << 20)), zipfile.ZIP_DEFLATED),
        _zip(_probe(rows=b"\0" * (64 << 20)), zipfile.ZIP_LZMA),
        _zip(_probe(rows=CLAIM.ljust(127) + b"\n")),
        _zip(_probe(rows=_npy(np.array([[{}]]), allow_pickle=True))),
        _zip(_probe(rows=_npy(np.zeros((2, 6), "<f4")))),
        _zip(_probe(rows=_npy(np.zeros((2, 6), order="F")))),
        _zip(_probe(rows=_npy(np.zeros((0, 6))))),
        _zip(_probe(rows=_npy(np.zeros((2, 7))))),
        _zip(_probe(margins=_npy(np.zeros((3, 1))))),
        _zip(_probe(margins=_npy(np.zeros((2, 0))), scores=_npy(np.zeros((2, 0))))),
        _zip(_probe(margins=_npy(np.zeros((2, 3))), scores=_npy(np.zeros((2, 3))))),
        _zip(_probe()[:2]),
        _zip([*_probe(), ("more.npy", b"")]),
        _zip([("../rows.npy", b""), *_probe()[1:]]),
        _zip(_probe())[:-30],
        b"PK\x05\x06" + b"\0" * 18,
        b"",
    ],
)
def test_a_probe_is_unpacked_only_as_far_as_it_is_known(archive: bytes, tiny: Path, tmp_path: Path) -> None:
    forged = forge(tiny, tmp_path, {"probe.npz": archive})
    tracemalloc.start()
    try:
        with pytest.raises(BundleRefused, match=r"probe\.npz|model\.(flat|onnx)"):
            open_predictor(forged)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_changes_after_it_was_verified_is_not_used(tiny: Path, tmp_path: Path) -> None:
    changing = copy(tiny, tmp_path)
    manifest = bundle.read(changing)
    data = bytearray((changing / "model.flat").read_bytes())
    data[-1] ^= 1
    (changing / "model.flat").write_bytes(data)
    with pytest.raises(BundleRefused, match=r"model\.flat: its content"):
        bundle.load(changing, manifest, "model.flat")
    with pytest.raises(BundleRefused, match="not part of the bundle"):
        bundle.load(changing, manifest, "measured.json")


def test_what_was_measured_is_advice(tiny: Path, tmp_path: Path) -> None:
    for text in (b"", b"{}", b"[" * 100_000, b'{"chosen":"nothing","us":{}}', b"\0" * (2 << 20)):
        advised = copy(tiny, Path(tempfile.mkdtemp(dir=tmp_path)))
        (advised / "measured.json").write_bytes(text)
        assert open_predictor(advised).backend == "treelite"


def test_publishing_copies_what_was_verified_or_nothing(tiny: Path, tmp_path: Path) -> None:
    spoilt = copy(tiny, tmp_path)
    (spoilt / "model.onnx").unlink()
    with pytest.raises(BundleRefused, match=r"model\.onnx"):
        bundle.publish(spoilt, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    for _ in range(2):
        assert bundle.publish(tiny, tmp_path / "store") == tiny.name
    assert [path.name for path in (tmp_path / "store" / "bundles").iterdir()] == [tiny.name]


def test_a_limit_is_a_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert plain_files.read(tmp_path / "file", 5) == b"12345"
    with pytest.raises(BundleRefused, match="4 are the limit"):
        plain_files.read(tmp_path / "file", 4)
    with pytest.raises(BundleRefused, match=r"/dev/zero: is not a plain file"):
        plain_files.read(Path("/dev/zero"), 1 << 20)
