"""The link: raw margins of a forest, (n, groups) float64, to served scores, (n, k) float64. Applied here and nowhere else.

    identity       x
    logistic       1 / (1 + exp(-sigmoid * x)), each group by itself
    softmax        over a row's groups, the largest subtracted first
    exp            exp(x)
    log1pexp       log(1 + exp(x)), LightGBM's cross_entropy_lambda
    signed_square  sign(x) * x * x, LightGBM's reg_sqrt
    hinge          1 where x > 0, else 0
    isolation      -2**-x - offset, scikit-learn's IsolationForest.decision_function

A margin is divided by `divisor` first: averaged trees. Where `single` is set, logistic, softmax and exp are computed in
float32 as XGBoost does, bit for bit. Then `column`, where given, is the only one kept: a forest with both classes serves
the second's probability. The last step is scikit-learn's calibration, in the precision that scikit-learn uses: `folds`
says, for each of the averaged models, how; a row then holds the margins of fold 0, of fold 1, and so on.

Nothing is clipped: where the library's own score is infinite, so is this one. Say so before it becomes JSON.

`pack` is what `links.c` reads. Little-endian:

    header       magic "COPPLNK1"; uint32: kind, groups of a fold, folds (0: not calibrated), calibrators of a fold, single,
                 column (2**32 - 1: all), knots, 0; float64: sigmoid, divisor, offset
    calibrators  {uint32 method, first knot, knots, single; float64 a, b}[folds * calibrators]
    knots        float64 x[knots], y[knots]
"""

from __future__ import annotations

import ctypes
import math
import struct
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from compile import kernel

Matrix = npt.NDArray[np.float64]
Kind = Literal["identity", "logistic", "softmax", "exp", "log1pexp", "signed_square", "hinge", "isolation"]

MAGIC = b"COPPLNK1"
HEADER = struct.Struct("<8s8I3d")
CALIBRATOR = struct.Struct("<4I2d")
KINDS: tuple[str, ...] = get_args(Kind)
ALL_COLUMNS = 0xFFFF_FFFF
MAX_GROUPS = 4096  # of one fold; links.c keeps a row of them on the stack


class Platt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="method", tag="platt"):
    """1 / (1 + exp(a * x + b))."""

    a: float
    b: float


class Isotonic(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="method", tag="isotonic"):
    """Linear between knots, constant beyond them. `single`: the knots are float32 and so is the arithmetic."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    single: bool = False


class Temperature(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="method", tag="temperature"):
    """softmax(beta * logits). One input is a binary classifier's; `probabilities` become logits by log(p + 1e-12)."""

    beta: float
    inputs: Literal["logits", "probabilities"]
    single: bool = False


Calibrator = Platt | Isotonic | Temperature
METHODS = (Platt, Isotonic, Temperature)


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that happens to a margin. Raises ValueError, naming the field, for what could not be applied."""

    kind: Kind
    sigmoid: float = 1.0
    divisor: float = 1.0
    offset: float = 0.0
    single: bool = False
    column: int | None = None
    folds: tuple[tuple[Calibrator, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is not one of {', '.join(KINDS)}")
        if not math.isfinite(self.sigmoid) or (self.sigmoid != 1.0 and self.kind != "logistic"):
            raise ValueError(f"sigmoid: {self.sigmoid} does not fit kind {self.kind}")
        if not (math.isfinite(self.divisor) and self.divisor > 0):
            raise ValueError(f"divisor: {self.divisor} is not a finite number above 0")
        if not math.isfinite(self.offset) or (self.offset != 0.0 and self.kind != "isolation"):
            raise ValueError(f"offset: {self.offset} does not fit kind {self.kind}")
        in_single = self.kind in ("logistic", "softmax", "exp") and self.sigmoid == self.divisor == 1.0
        if self.single and not in_single:
            raise ValueError("single: is for XGBoost's logistic, softmax and exp")
        if self.column is not None and not 0 <= self.column < MAX_GROUPS:
            raise ValueError(f"column: {self.column} is not within 0 and {MAX_GROUPS - 1}")
        _check_folds(self.folds)


def apply(link: Link, margins: Matrix) -> Matrix:
    """(n, groups of all folds) float64 -> (n, k) float64, which the caller owns. By links.c, or its twin where it is absent."""
    margins = np.ascontiguousarray(margins, dtype=np.float64)
    width(link, margins.shape[1])
    if not kernel.available():
        from compile.links_slow import apply_slowly

        return apply_slowly(link, margins)
    return OpenLink(pack(link, margins.shape[1])).apply(margins)


class OpenLink:
    """A packed link, opened in C. Pure: any number of threads may apply it."""

    def __init__(self, data: bytes) -> None:
        """Raises KernelUnavailable, or ValueError where `data` is not a sound link."""
        self.handle: int | None = _library().coppice_link_open(data, len(data))
        if not self.handle:
            raise ValueError("not a sound link")
        self.width: int = _library().coppice_link_width(self.handle)

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            _library().coppice_link_close(self.handle)

    def apply(self, margins: Matrix) -> Matrix:
        """(n, groups) float64, C-contiguous -> (n, k) float64, which the caller owns."""
        scores = np.empty((len(margins), self.width))
        _library().coppice_link_apply(self.handle, len(margins), margins.ctypes.data, scores.ctypes.data)
        return scores


def width(link: Link, groups: int) -> int:
    """k, the scores of a row of `groups` margins (of all folds). Raises ValueError where the two do not fit."""
    each, rest = divmod(groups, max(1, len(link.folds)))
    if rest or not 0 < each <= MAX_GROUPS:
        raise ValueError(f"{groups} margins a row do not fit {len(link.folds)} folds of 1 to {MAX_GROUPS} each")
    if link.column is not None and link.column >= each:
        raise ValueError(f"column: {link.column} of {each}")
    kept = each if link.column is None else 1
    if link.folds and not isinstance(link.folds[0][0], Temperature) and len(link.folds[0]) != kept:
        raise ValueError(f"folds: {len(link.folds[0])} calibrators for {kept} values")
    return kept


def pack(link: Link, groups: int) -> bytes:
    """The bytes that `coppice_link_open` reads, for rows of `groups` margins; the same link gives the same bytes."""
    width(link, groups)
    records, x, y = bytearray(), list[float](), list[float]()
    for calibrator in (calibrator for fold in link.folds for calibrator in fold):
        first, a, b = len(x), 0.0, 0.0
        if isinstance(calibrator, Isotonic):
            x += calibrator.x
            y += calibrator.y
        elif isinstance(calibrator, Platt):
            a, b = calibrator.a, calibrator.b
        else:
            a, b = calibrator.beta, float(calibrator.inputs == "probabilities")
        single = not isinstance(calibrator, Platt) and calibrator.single
        records += CALIBRATOR.pack(METHODS.index(type(calibrator)), first, len(x) - first, single, a, b)
    header = HEADER.pack(
        MAGIC,
        KINDS.index(link.kind),
        groups // max(1, len(link.folds)),
        len(link.folds),
        len(link.folds[0]) if link.folds else 0,
        link.single,
        ALL_COLUMNS if link.column is None else link.column,
        len(x),
        0,
        link.sigmoid,
        link.divisor,
        link.offset,
    )
    return header + bytes(records) + np.array([*x, *y], dtype="<f8").tobytes()


def predicted_class(values: Matrix) -> npt.NDArray[np.int64]:
    """The first of the largest in each row. XGBoost's `multi:softmax` and scikit-learn's boosting ask it of the margins.

    Scores give the same class but where margins differ by less than 2**-53, which a softmax rounds away.
    """
    return np.asarray(np.argmax(values, axis=1), dtype=np.int64)


def _check_folds(folds: tuple[tuple[Calibrator, ...], ...]) -> None:
    if not folds:
        return
    sizes = {len(fold) for fold in folds}
    if len(sizes) != 1 or not 1 <= (size := sizes.pop()) <= MAX_GROUPS or size == 2:
        raise ValueError("folds: each has one calibrator, or one a class of three and more")
    for calibrator in (calibrator for fold in folds for calibrator in fold):
        if isinstance(calibrator, Temperature) != isinstance(folds[0][0], Temperature):
            raise ValueError("folds: temperature does not mix with other methods")
        if isinstance(calibrator, Temperature) and size != 1:
            raise ValueError("folds: temperature is one calibrator a fold")
        _check(calibrator)


def _check(calibrator: Calibrator) -> None:
    if isinstance(calibrator, Isotonic):
        if not calibrator.x or len(calibrator.x) != len(calibrator.y):
            raise ValueError(f"isotonic: {len(calibrator.x)} knots and {len(calibrator.y)} values")
        if not all(a < b for a, b in pairwise(calibrator.x)):
            raise ValueError("isotonic: the knots do not ascend")
        numbers = [*calibrator.x, *calibrator.y]
    else:
        numbers = [calibrator.a, calibrator.b] if isinstance(calibrator, Platt) else [calibrator.beta]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{type(calibrator).__name__.lower()}: a number is NaN or infinite")


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """The kernel's library, which releases the GIL, with links.h declared."""
    _, library = kernel._libraries()
    library.coppice_link_open.restype = ctypes.c_void_p
    library.coppice_link_open.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    for name in ("groups", "width"):
        getattr(library, f"coppice_link_{name}").restype = ctypes.c_uint32
        getattr(library, f"coppice_link_{name}").argtypes = [ctypes.c_void_p]
    library.coppice_link_apply.restype = library.coppice_link_close.restype = None
    library.coppice_link_apply.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p]
    library.coppice_link_close.argtypes = [ctypes.c_void_p]
    return library
