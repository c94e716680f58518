"""A model card's Markdown as one page of HTML that needs nothing else: its pictures are inside it.

Cards carry names and values that came with the data, so nothing in one is trusted: HTML in the Markdown is shown as text,
links that would run something are not made, pictures come from the card's own files alone, and the page's policy lets a
browser load nothing. Imports nothing but the Markdown reader, when first called: the server makes pages, too.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1d2622}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #d5ddd9;"
    "text-align:left}code{background:#eef3f0;padding:0 .2rem}img{max-width:100%}h1,h2{color:#1b5e4b}"
)
PICTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.png")
PNG = b"\x89PNG\r\n\x1a\n"


def page(markdown: str, pictures: Mapping[str, bytes]) -> str:
    """`pictures`: PNG by the file name that the Markdown shows it under; what is not among them is not shown."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(markdown)
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                child.attrSet("src", _inside(str(child.attrGet("src")), pictures))
    body = reader.renderer.render(tokens, reader.options, {})
    title = next(
        (line.removeprefix("# ").replace("\\", "") for line in markdown.splitlines() if line.startswith("# ")),
        "Model card",
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )


def _inside(source: str, pictures: Mapping[str, bytes]) -> str:
    data = pictures.get(source, b"")
    if not PICTURE.fullmatch(source) or not data.startswith(PNG):
        return ""
    return "data:image/png;base64," + base64.b64encode(data).decode()
