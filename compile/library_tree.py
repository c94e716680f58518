"""One tree of tl2cgen's C, read line by line against the shapes that are known, and written again so that it is exact.

tl2cgen 1.0.0 (frozen since 2024) writes `if (...) { result[0] += 0.1; }`. Two things in that are wrong, and made right here:

    missing   `union Entry {int missing; double fvalue;}` reads a double whose low 32 bits are all ones as missing. Here a
              missing value is NaN itself, and each comparison is written so that its answer for NaN is the split's own
              default: `x < t` sends NaN right, `!(x >= t)` left. Nothing stands for "missing" that a number could equal
    leaves    float32 leaves are written as double constants, so each addition is rounded twice; here they are float32

A line of another shape is refused: a generator that changed can't be compiled by mistake.
"""

from __future__ import annotations

import re
from typing import Literal

from compile.errors import ModelRefused

CType = Literal["float", "double"]

OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<"}

NUMBER = r"-?\d+(?:\.\d+)?(?:e[-+]\d+)?"
SPLIT = re.compile(
    r"(?P<nan_left>!)?\(data\[(?P<feature>\d+)\]\.missing != -1\) (?(nan_left)\|\||&&) "
    rf"\(data\[(?P=feature)\]\.fvalue (?P<operator><=?|>=?) \((?P<type>float|double)\)(?P<threshold>{NUMBER})\)"
)
WORD = r"\(tmp >= (\d+) && tmp < \d+ && \(\( \(uint64_t\)(\d+)U >> (?:tmp|\(tmp - \d+\) )\) & 1\) \)"
CATEGORY_SPLIT = re.compile(
    r"data\[(?P<feature>\d+)\]\.missing (?:(?P<nan_left>== -1 \|\|)|!= -1 &&) (?P<negated>!?)"
    r"\(\(tmp = \(unsigned int\)\(data\[(?P=feature)\]\.fvalue\) \), \(\(data\[(?P=feature)\]\.fvalue >= 0\) && "
    r"\(fabsf?\(data\[(?P=feature)\]\.fvalue\) <= \((?:float|double)\)\(1U << FLT_MANT_DIG\)\) && "
    rf"\((?P<words>{WORD}(?: \|\| {WORD})*)\)\)\)"
)
IF = re.compile(r"if \( ?(?:(?:UN)?LIKELY\( (?P<likely>.*) \) |(?P<plain>.*))\) \{")
LEAF = re.compile(rf"result\[(?P<group>\d+)\] \+= (?P<value>{NUMBER});")
START = re.compile(r"void predict_unit\d+\(union Entry\* data, (?:float|double)\* result\) \{")


class GeneratedTree:
    """`body` is a C function's, on `data` and `result`; `sets` are (name, words) of the uint64 bitsets that it uses.

    `splits`, `leaves`, `width` and `groups` count what was seen. Raises ModelRefused at the first line that is not known.
    """

    def __init__(self, text: str, c_type: CType, number: int) -> None:
        self.splits = self.leaves = self.width = self.groups = 0
        self.sets: list[tuple[str, str]] = []
        self._type = c_type
        self._number = number
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if len(lines) < 5 or lines[0] != '#include "header.h"' or not START.fullmatch(lines[1]) or lines[-1] != "}":
            raise self._unknown(text[:120])
        if lines[2] != "unsigned int tmp;":
            raise self._unknown(lines[2])
        self.body = "\n".join(self._line(line) for line in lines[3:-1])

    def _line(self, line: str) -> str:
        if line in ("} else {", "}"):
            return line
        if leaf := LEAF.fullmatch(line):
            self.leaves += 1
            self.groups = max(self.groups, int(leaf["group"]) + 1)
            return f"result[{leaf['group']}] += {self._constant(leaf['value'])};"
        if branch := IF.fullmatch(line):
            self.splits += 1
            condition = self._condition((branch["likely"] or branch["plain"] or "").strip())
            keyword = re.match(r"if \( ?((?:UN)?LIKELY)\(", line)
            return f"if ({keyword[1]}({condition})) {{" if keyword else f"if ({condition}) {{"
        raise self._unknown(line)

    def _condition(self, text: str) -> str:
        if text.endswith((" && (1)", " && (0)", " || (1)", " || (0)")):
            raise ModelRefused(f"tree {self._number}: a split at an infinite threshold")
        if text == "0":
            raise ModelRefused(f"tree {self._number}: a categorical split without categories")
        found = SPLIT.fullmatch(text) or CATEGORY_SPLIT.fullmatch(text)
        if found is None:
            raise self._unknown(text)
        self.width = max(self.width, int(found["feature"]) + 1)
        return self._numeric(found) if found.re is SPLIT else self._categorical(found)

    def _numeric(self, found: re.Match[str]) -> str:
        if found["type"] != self._type:
            raise self._unknown(found[0])
        x, threshold = f"data[{found['feature']}]", self._constant(found["threshold"])
        if found["nan_left"]:
            return f"!({x} {OPPOSITE[found['operator']]} {threshold})"
        return f"{x} {found['operator']} {threshold}"

    def _categorical(self, found: re.Match[str]) -> str:
        pieces = re.findall(WORD, found["words"])
        if [int(start) for start, _ in pieces] != list(range(0, 64 * len(pieces), 64)):
            raise self._unknown(found[0])
        name = f"set_{self._number}_{len(self.sets)}"
        self.sets.append((name, ", ".join(f"{word}u" for _, word in pieces)))
        x = f"data[{found['feature']}]"
        belongs = f"{found['negated']}member({x}, {name}, {len(pieces)})"
        return f"{x} != {x} || {belongs}" if found["nan_left"] else f"{x} == {x} && {belongs}"

    def _constant(self, text: str) -> str:
        """The constant in the model's own type: a decimal is then rounded once, and so to the number it was printed from."""
        constant = text if "." in text or "e" in text else text + ".0"
        return constant + "f" if self._type == "float" else constant

    def _unknown(self, text: str) -> ModelRefused:
        return ModelRefused(f"tl2cgen: tree {self._number}: wrote what is not known to this version: {text[:120]!r}")
