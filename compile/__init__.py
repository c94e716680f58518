"""A registered model in, a proven bundle out; and how to open one.

`build_bundle` and `open_predictor` are looked up when first used: opening a bundle must not load what building one needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compile.build import build_bundle
    from compile.runtime import open_predictor

__all__ = ["build_bundle", "open_predictor"]


def __getattr__(name: str) -> Any:
    if name == "build_bundle":
        from compile.build import build_bundle

        return build_bundle
    if name == "open_predictor":
        from compile.runtime import open_predictor

        return open_predictor
    raise AttributeError(f"module 'compile' has no attribute {name!r}")
