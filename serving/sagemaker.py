"""Tensors at SageMaker's /invocations: the Open Inference Protocol v2 on the path where MLflow's protocol is spoken too.

A body is of v2 where its content type is Triton's for SageMaker, or where it is JSON whose `inputs` are tensors, each with a
`datatype`; MLflow's `inputs` are rows, or columns by name. Raw bytes follow the JSON, whose length is in the content type,
here and in the answer:

    application/vnd.sagemaker-triton.binary+json;json-header-size=N
"""

from __future__ import annotations

import re
from typing import Any

BINARY = "application/vnd.sagemaker-triton.binary+json"
_SIZE = re.compile(rf"{re.escape(BINARY)}\s*;\s*json-header-size\s*=\s*\"?([^\s;\"]*)\"?\s*", re.IGNORECASE)


def json_size(content_type: str) -> str | None:
    """What the content type says of the JSON's length; None where it is another.

    >>> json_size("application/vnd.sagemaker-triton.binary+json;json-header-size=12")
    '12'
    """
    found = _SIZE.fullmatch(content_type.strip())
    return found[1] if found else None


def head_of(size: int) -> tuple[bytes, bytes]:
    """As `oip_infer.triton_head`."""
    return f"{BINARY};json-header-size={size}".encode(), b""


def has_tensors(told: Any) -> bool:
    """Whether a parsed body is of v2."""
    inputs = told.get("inputs") if isinstance(told, dict) else None
    return isinstance(inputs, list) and bool(inputs) and isinstance(inputs[0], dict) and "datatype" in inputs[0]
