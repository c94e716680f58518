"""`GET /v1/models/{model}/card`: the model card of the champion's bundle, as Markdown, or as a page for who asks for HTML.

The card is read from the bundle, hashed as it is read, and made into a page (`training.card_page`) off the loop; a bundle
never changes, so the last few pages are kept.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Header
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from compile.bundle import CARD, load, locate, read
from compile.errors import BundleRefused
from serving.served import Served
from training.card_page import PICTURE, POLICY, page

MAX_CARD_BYTES = 1 << 20  # what one page may cost to make
MAX_PICTURE_BYTES = 1 << 20  # of each; larger ones are not shown
KEPT = 8
TEXT = {"schema": {"type": "string"}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Markdown, or HTML where it is accepted",
        "content": {"text/markdown": TEXT, "text/html": TEXT},
    },
    404: {"description": "no such model is served here, or its bundle has no card"},
    503: {"description": "the card can't be read from its bundle"},
}


def add_card(app: FastAPI, served: Served, store: Path) -> None:
    """`store`: where workers find their bundles."""

    @app.get(
        "/v1/models/{model}/card",
        tags=["models"],
        summary="The champion's model card",
        response_class=Response,
        responses=RESPONSES,
    )
    async def card(model: str, accept: Annotated[str, Header()] = "") -> Response:
        if model not in served.models:
            raise HTTPException(404, f"no model {model!r} is served here; GET /v1/models lists them")
        now = served.models[model].snapshot
        bundle = locate(store, now.routes.arms[now.champion.name])
        html = "text/html" in accept.lower()
        try:
            body = await asyncio.to_thread(_written, bundle, html)
        except BundleRefused:  # its words name a path of this host
            raise HTTPException(503, f"the card of {model!r} can't be read from its bundle") from None
        if body is None:
            raise HTTPException(404, f"the bundle of {model!r} carries no model card of at most {MAX_CARD_BYTES} bytes")
        headers = {"vary": "accept", "x-content-type-options": "nosniff", "content-security-policy": POLICY}
        return Response(body, headers=headers, media_type="text/html" if html else "text/markdown; charset=utf-8")


@lru_cache(maxsize=KEPT)
def _written(bundle: Path, html: bool) -> bytes | None:
    """None where the bundle has no card, or one too large to show. Raises BundleRefused."""
    manifest = read(bundle)
    entry = manifest.files.get(CARD)
    if entry is None or entry.bytes > MAX_CARD_BYTES:
        return None
    text = load(bundle, manifest, CARD)
    if not html:
        return text
    names = [name for name, file in manifest.files.items() if PICTURE.fullmatch(name)]
    shown = {name: load(bundle, manifest, name) for name in names if manifest.files[name].bytes <= MAX_PICTURE_BYTES}
    return page(text.decode("utf-8", "replace"), shown).encode()
