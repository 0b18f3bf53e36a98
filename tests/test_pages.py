"""Pages in a real browser: nothing fails, nothing is fetched, nothing that came from data or user runs."""

from dataclasses import replace

import numpy as np
import pytest
from browser import PROGRAM, browser
from test_comparison import CONFIG, FIGURES, losses, write
from test_run import config_in, train

from jaxgen import report
from jaxgen.commands.compare import read
from jaxgen.comparison import page as comparison

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium, chromium-browser or google-chrome on PATH")

RUN = "document.documentElement.dataset.ran = 1"  # what a script that gets through would do
ATTRIBUTES = "[...document.querySelectorAll('*')].flatMap(element => element.getAttributeNames())"
HOSTILE = [
    f"<script>{RUN}</script>",
    f'"><img src=x onerror="{RUN}"><svg onload="{RUN}">',
    f"' onmouseover='{RUN}' autofocus onfocus='{RUN}' x='",
    f"</title></style></pre></table><script>{RUN}</script><!--",
    f"--><script>{RUN}</script><![CDATA[",
    "<iframe src='https://example.org/'></iframe><link rel=stylesheet href=https://example.org/x.css>",
    "<meta http-equiv=refresh content='0;url=https://example.org/'><base href=https://example.org/>",
    f"javascript:{RUN}//{{{{ 7 * 7 }}}}{{% raw %}}",
    "two\nlines \x00\x1b[31m \u202e \udcff $\\frac{$ &amp; &lt;b",
]


@pytest.fixture(scope="module")
def page():
    with browser() as opened:
        yield opened


def check(page, path, *, pictures):
    """Opens a page; it fails nowhere, fetches nothing, and shows all of its pictures."""
    page.open(path)
    shown = page.evaluate("Promise.all([...document.images].map(i => i.decode())).then(() => document.images.length)")
    assert shown == pictures
    assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0 && i.naturalHeight > 0)")
    assert page.evaluate("document.documentElement.dataset.ran") is None
    assert page.evaluate("document.querySelectorAll('script, iframe, base, link:not([rel=icon])').length") == 0
    assert page.evaluate(f"{ATTRIBUTES}.filter(name => name.startsWith('on')).length") == 0
    for event in page.events:
        assert event["method"] not in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"), event
        assert event["params"].get("entry", {}).get("level") not in ("error", "warning"), event
        if event["method"] == "Network.requestWillBeSent":
            url = event["params"]["request"]["url"]
            assert url == path.as_uri() or url.startswith("data:"), url
    assert page.evaluate("location.href") == path.as_uri()
    # No part of the page is wider than the page.
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_the_check_notices_what_is_wrong(page, tmp_path):
    for i, (body, pictures) in enumerate(
        [
            (f"<script>{RUN}</script>", 0),
            (f"<img src='data:,' onerror='{RUN}'>", 1),
            ("<img src='data:image/png;base64,'>", 1),
            ("<style>body { background: url(https://example.org/x.png) }</style>", 0),
            ("<div style='width: 9999px'>x</div>", 0),
            ("", 1),
        ]
    ):
        path = tmp_path / f"{i}.html"
        path.write_text(f"<!doctype html><link rel=icon href='data:,'><p>x{body}")
        with pytest.raises(AssertionError):
            check(page, path, pictures=pictures)


def test_the_report_of_a_run(page, tmp_path, monkeypatch):
    config = config_in(tmp_path / "run")
    train(replace(config, steps=20, run=replace(config.run, log_every=5, evaluate_every=20, checkpoint_every=20)))
    check(page, config.workdir / "report.html", pictures=4)
    assert page.evaluate("document.querySelector('svg').getBoundingClientRect().width") > 300
    assert "test/" not in page.evaluate("document.title")


@pytest.mark.parametrize("evil", HOSTILE)
def test_text_of_users_stays_text(page, tmp_path, evil):
    picture, sound = np.zeros((4, 4, 1), np.uint8), report.Sound(np.zeros(8, np.int16), 8_000)
    exhibits = {evil: report.encode(picture), f"{evil}2": report.encode(sound)}
    exhibits |= {"text": (".txt", evil.encode(errors="replace")), "no text": (".txt", b"\xff")}
    text = report.page(
        title=evil,
        command=evil,
        figures={evil: evil},
        exhibits=exhibits,
        rows=[],
        facts={evil: evil},
        earlier={evil: report.encode(picture)},
        warnings=[evil],
        notice=evil,
    )
    path = tmp_path / "page.html"
    path.write_bytes(text.encode(errors="replace"))
    check(page, path, pictures=2)
    shown = evil.encode(errors="replace").decode().replace("\x00", "")  # which HTML leaves out
    assert page.evaluate("document.querySelector('pre').textContent") == shown
    assert page.evaluate("document.querySelector('h1').textContent") == shown


def test_names_of_metrics_stay_text(page, tmp_path):
    rows = [{"step": i} | {f"train/{evil}": 1.0 for evil in HOSTILE} | {f"{HOSTILE[0]}/x": 1.0} for i in range(2)]
    path = tmp_path / "page.html"
    path.write_text(report.page(title="", command="", figures={}, exhibits={}, facts={}, rows=rows))
    check(page, path, pictures=0)
    assert (
        page.evaluate("document.querySelectorAll('svg [id^=axes]').length") == 12
    )  # three in a row, two of them empty


def test_runs_side_by_side(page, tmp_path):
    """Each string in every field of a run that has one."""
    runs = []
    for i, evil in enumerate(HOSTILE):
        text, picture = evil.replace("\udcff", ""), np.full((4, 4, 1), 255, np.uint8)
        rows = [*losses(3.0, 2.0), {"step": 2, f"train/{evil}": 1.0}, {"step": 2, "warning": evil}]
        rows += [{"step": 2, "figures": FIGURES["figures"] | {evil: [1.0, 0.5]}}]
        others = {"experiment": text, "command": text, "notice": text, "device": text, "versions": {text: text}}
        exhibits = [("a_0000001", picture), ("b_0000001", text)]
        run = read(write(tmp_path / str(i), config=CONFIG | {text: text}, rows=rows, exhibits=exhibits, **others))
        runs.append(replace(run, name=evil, exhibits=dict(run.exhibits) | {evil: report.encode(picture)}))
    path = tmp_path / "page.html"
    path.write_bytes(comparison(runs).encode(errors="replace"))
    check(page, path, pictures=2 * len(HOSTILE))
    rows = "document.querySelectorAll('table')[1].rows"
    assert page.evaluate(f"{rows}.length") == 1 + len(FIGURES["figures"]) + len(HOSTILE)
    assert page.evaluate(f"[...{rows}].every(row => row.cells.length == {1 + len(HOSTILE)})")
