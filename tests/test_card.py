import itertools
import random

import pytest

from jaxgen.card import card

HARMLESS = "words"
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "# heading",
    "title ##",
    "- item",
    "+ item",
    "12) item",
    "1. item",
    "===",
    "---",
    "***",
    "> quote",
    "    code",
    "a | b \\| c",
    "\\",
    "``` `",
    "~~~",
    "[x](javascript:alert(1)) ![y](http://z)",
    "[x]: http://z",
    "*a* _b_ __c__ ~~d~~ mnist_5k",
    "&lt;b&gt; &amp; &#35;",
    "two\n\n# lines\r\n| a | b |",
    "\x00\x1b[31m\u2028\u202e\ud800",
    "",
]


def of(text, **others):
    every = {"title": text, "experiment": text, "command": text, "sampling": [text, text], "data": text, "notice": text}
    every |= {"source": text, "figures": {"a": text, text: "1", "copies " + text: text}, "warnings": [text, text]}
    every |= {"audited": ["copies " + text], "verdict": text, "versions": {text: text}, "device": text}
    return card(**every | others)


def test_it_says_what_was_and_what_was_not_asked():
    text = of("x", figures={"nll": "87.61 ± 0.23", "near": "1.00"}, audited=["near"], verdict="no copying detected")
    figures, memorization = text.partition("## Figures")[2].split("## Memorization")
    assert "| nll | 87.61 ± 0.23 |" in figures
    assert "near" not in figures
    assert "no copying detected" in memorization
    assert "| near | 1.00 |" in memorization
    assert "Not asked" not in text
    text = of("x", figures={"nll": "87.61 ± 0.23"}, audited=None, verdict="", warnings=[], source="")
    assert "## Memorization\n\nNot asked." in text
    assert "The run gave none." in text
    assert "licence: not stated" in text


def tokens(text):
    """The structure of the document, and the words in it."""
    markdown = pytest.importorskip("markdown_it", reason="markdown-it-py reads the card again").MarkdownIt("commonmark")
    found = markdown.enable(["table", "strikethrough"]).parse(text)
    flat = [part for token in found for part in (token.children or [token])]
    return [part.type for part in flat if part.type != "text_special"], [t for t in flat if t.type == "text"], flat


@pytest.mark.parametrize("text", [text for text in HOSTILE if text.strip()])
def test_text_of_users_stays_text(text):
    """The same headings, tables and lists as of harmless words; no markup, and every word as it was."""
    types = ("softbreak", "text", "text_special")
    structure, _, flat = tokens(of(text))
    expected, _, _ = tokens(of(HARMLESS))
    assert [t for t in structure if t not in types] == [t for t in expected if t not in types]
    shown = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    whole = "".join(token.content if token.type in types else "\n" for token in flat)
    assert f"Source, credit and licence: {shown or 'not stated'}\n" in whole
    assert f"Notice:\n {shown}".rstrip() in whole


def test_any_row_of_marks_stays_text():
    draw = random.Random(0)
    marks = [*"\\`*_[]()<>#+-.!|~$&=:;'\"{}^ \n\t", "a", "1", "&lt;", "](", "<b>", "http://a.b"]
    expected = None
    for _ in range(60):
        text = "x" + "".join(draw.choices(marks, k=12)) if draw.random() < 0.5 else "".join(draw.choices(marks, k=12))
        if not text.strip():
            continue
        structure = [t for t in tokens(of(text))[0] if t not in ("softbreak", "text")]
        expected = expected or [t for t in tokens(of(HARMLESS))[0] if t not in ("softbreak", "text")]
        assert structure == expected, repr(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_commands_are_shown_as_they_are(text):
    _, _, flat = tokens(of("x", command=text, sampling=[text]))
    blocks = [token.content for token in flat if token.type == "fence"]
    shown = "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    assert blocks == [shown + "\n"] * 2
    assert [token.type for token in flat if token.type.startswith("html")] == []


def test_it_can_always_be_written():
    for one, other in itertools.product(HOSTILE, repeat=2):
        of(one + other).encode()
