"""A card is served as Markdown and as a page, and nothing that came with the data becomes HTML in it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cases import publish_routes
from hypothesis import given
from hypothesis import strategies as st
from inprocess import InProcess

from compile.bundle import publish, read, write
from training.card import MOST_CHARACTERS, code, plain, shortened
from training.card_page import PNG, page

ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "code", "img"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def seen(html: str) -> Seen:
    parser = Seen()
    parser.feed(html)
    return parser


@given(
    text=st.one_of(
        st.text(max_size=60),
        st.text(alphabet="<>&\"'`|\\[]()!*_#-~ \n=:/javscriptmgonerl", max_size=60),
        st.sampled_from(
            [
                "<script>alert(1)</script>",
                "`<img src=x onerror=alert(1)>`",
                "| a |\n|---|\n<b>x</b>",
                "[x](javascript:alert(1))",
                "![x](https://elsewhere/x.png)",
                "</title><script>1</script>",
                "<https://elsewhere>",
                "&lt;b&gt;",
            ]
        ),
    )
)
def test_no_name_or_value_becomes_html(text: str) -> None:
    found = seen(
        page(f"# Model card: {plain(text)}\n\nx {plain(text)} y {code(text)}\n\n| {code(text)} |\n|---|\n", {})
    )
    assert set(found.tags) <= ALLOWED - {"img"}
    assert found.attributes <= {"lang", "charset", "http-equiv", "content"}


def test_what_is_written_as_plain_reads_as_it_was() -> None:
    text = "a_b * c < d & [e](f) `g` | h #1 ~~i~~ $j$ k\\l"
    assert text in seen(page(plain(text), {})).text


def test_html_in_a_recipes_words_is_text_and_pictures_are_the_cards_own() -> None:
    pictures = {"roc.png": PNG + b"x", "other.png": b"<svg onload=x>"}
    html = page("<script>x</script>\n\n![a](roc.png) ![b](other.png) ![c](https://e/x.png) ![d](../roc.png)", pictures)
    assert "<script" not in html
    assert re.findall(r'<img src="([^"]*)"', html) == ["data:image/png;base64,iVBORw0KGgp4", "", "", ""]


def test_a_registry_gets_a_card_of_the_length_it_takes() -> None:
    assert shortened("short\n") == "short\n"
    cut = shortened("a line\n" * 2000)
    assert len(cut) <= MOST_CHARACTERS
    assert cut.endswith("in the bundle._\n")


@pytest.fixture
def with_card(tiny: Path, tmp_path: Path) -> Path:
    """A store whose champion carries a card."""
    manifest = read(tiny)
    files = {name: (tiny / name).read_bytes() for name in manifest.files}
    card = "# Model card: <b>m</b>\n\n![ROC](roc.png)\n"
    made = write(tmp_path / "made", manifest, {**files, "model_card.md": card.encode(), "roc.png": PNG + b"x"}, None)
    publish_routes(tmp_path / "store", {"champion": publish(made, tmp_path / "store")}, {"champion": 100})
    return tmp_path / "store"


def test_a_card_is_served_as_who_asks_can_read_it(with_card: Path, tmp_path: Path) -> None:
    server = InProcess(with_card, "mixed", tmp_path / "traffic")
    try:
        status, headers, body = server.asgi("/v1/models/mixed/card", None, {"accept": "text/html,*/*;q=0.8"})
        assert status == 200
        assert (b"content-type", b"text/html; charset=utf-8") in headers
        assert b"default-src 'none'" in dict(headers)[b"content-security-policy"]
        assert b"<b>" not in body
        assert b"data:image/png;base64," in body
        status, headers, body = server.asgi("/v1/models/mixed/card", None, {"accept": "*/*"})
        assert (status, dict(headers)[b"content-type"]) == (200, b"text/markdown; charset=utf-8")
        assert body.startswith(b"# Model card")
        status, _, body = server.asgi("/v1/models/nobody/card", None, {})
        assert status == 404
        assert b"nobody" in body
    finally:
        server.close()


def test_a_bundle_without_a_card_and_one_that_was_altered_say_so(with_card: Path, tiny: Path, tmp_path: Path) -> None:
    without = tmp_path / "without"
    publish_routes(without, {"champion": publish(tiny, without)}, {"champion": 100})
    for store, status, words in ((without, 404, b"no model card"), (with_card, 503, b"can't be read")):
        server = InProcess(store, "mixed", tmp_path / f"traffic{status}")
        try:
            for card in store.glob("bundles/*/model_card.md"):
                card.write_text("# altered")
            answered = server.asgi("/v1/models/mixed/card", None, {})
            assert answered[0] == status
            assert words in answered[2]
            assert str(tmp_path).encode() not in answered[2]
        finally:
            server.close()
