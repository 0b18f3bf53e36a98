import base64
import csv
import io
import sys
import wave
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from jaxgen import report


def test_page_escapes_what_came_from_data_or_user():
    evil = "<script>alert(1)</script>"
    page = report.page(
        title=evil,
        command=evil,
        figures={evil: evil},
        exhibits={evil: (".png", report.png(np.zeros((2, 2, 1), np.uint8))), "text": (".txt", evil.encode())},
        rows=[{"step": 1, f"train/{evil}": 1.0}, {"step": 2, f"train/{evil}": 2.0}],
        facts={evil: evil},
        notice=evil,
    )
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_curves_leave_out_what_is_no_number():
    rows = [{"step": 1, "train/loss": 3.0, "note": "x"}, {"step": 2, "train/loss": float("nan"), "test/loss": 2.0}]
    root = ElementTree.fromstring(report.curves(rows))
    assert root.tag.endswith("svg")
    assert report.curves([]) == ""


def test_grid_puts_images_row_by_row():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 4, 1), np.uint8)
    picture = report.grid(images, columns=2, gap=1)
    assert picture.shape == (3 * 4 - 1, 2 * 5 - 1, 1)
    assert [picture[4 * (i // 2), 5 * (i % 2), 0] for i in range(5)] == [1, 2, 3, 4, 5]


def test_png_is_read_back_and_small_pictures_are_doubled():
    for height, zoom in ((5, 2), (400, 1)):
        picture = np.random.default_rng(0).integers(0, 256, (height, 6, 3), np.uint8)
        read = np.asarray(Image.open(io.BytesIO(report.png(picture))))
        np.testing.assert_array_equal(read, picture.repeat(zoom, axis=0).repeat(zoom, axis=1))


def test_points_are_drawn_where_they_are():
    behind = np.array([[-1.0, -1.0], [1.0, 1.0]])
    picture = report.scatter(np.array([[0.0, 0.5]]), behind)
    assert picture.shape == (480, 480, 3)
    row, column = np.argwhere((picture[..., 2].astype(int) - picture[..., 0]) > 60).mean(0)
    np.testing.assert_allclose([row, column], [240 - 0.5 / 1.1 * 240, 240], atol=2)


def test_sounds_are_wav_files_with_their_rate_and_have_players():
    sounds = np.array([[1, -2, 32_767], [-32_768, 5, 6]], np.int16)
    suffix, content = report.encode(report.in_turn(sounds, 1_000, gap=0.002))
    assert suffix == ".wav"
    with wave.open(io.BytesIO(content)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (1_000, 1, 2)
        found = np.frombuffer(file.readframes(99), "<i2")
    np.testing.assert_array_equal(found, [1, -2, 32_767, 0, 0, -32_768, 5, 6, 0, 0])
    page = report.page(title="", command="", figures={}, exhibits={"it": (suffix, content)}, rows=[], facts={})
    player = f'<audio controls src="data:audio/wav;base64,{base64.b64encode(content).decode()}"></audio>'
    assert player in page


def test_spectrograms_have_time_to_the_right_and_pitch_upwards():
    levels = np.zeros((1, 3, 5))
    levels[0, 2, 4] = 1  # the last frame's highest bin
    picture = report.spectrograms(levels)
    assert picture.shape == (5, 3, 3)
    assert np.unravel_index(picture.sum(-1).argmax(), (5, 3)) == (0, 2)


def test_a_map_of_latents_shows_labels_apart():
    """Along the direction in which two labels differ most, whatever the other dimensions do."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    points = 0.1 * rng.normal(size=(200, 5))
    points[:, 3] += 10 * labels
    picture = report.latent_map(points, labels, ["left", "right"], size=200).astype(int)
    red, blue = picture[..., 0], picture[..., 2]
    bluish, orange = np.flatnonzero((blue - red > 60).any(0)), np.flatnonzero((red - blue > 60)[60:].any(0))
    assert bluish.size
    assert orange.size
    assert bluish.max() < 100 < orange.min()  # below the legend for the second
    flat = report.latent_map(points[:, :1], labels, [""], size=100)  # one latent: a line
    assert (flat != 255).any()


def test_names_of_metrics_are_no_formulas():
    rows = [{"step": i, "train/cost $\\frac{$": 1.0, "test/cost $\\frac{$": 1.0, "a/b/c": 2.0} for i in range(2)]
    svg = report.curves(rows)
    assert svg.count("<!-- cost $\\frac{$ -->") == 1
    assert svg.count("<!-- b/c -->") == 1


def test_molecules_are_listed_where_they_cannot_be_drawn(monkeypatch):
    """RDKit draws with libraries of the system's screen, which many a server lacks."""
    pytest.importorskip("rdkit")
    assert report.structures(["CCO", "C"], ["logP 0.0", ""]).dtype == np.uint8
    monkeypatch.setitem(sys.modules, "rdkit.Chem.Draw", None)
    first, *rows = report.structures(["CCO", "C"], ["logP 0.0", ""]).splitlines()
    assert first.startswith("no drawings, since RDKit finds not all of its libraries (")
    assert rows == ["CCO  logP 0.0", "C"]


EVIL = ["$\\frac{1}{0}$", "$x$", "a_$b$", "=1+1", "\x1b[2J", "\ud800"]


def test_no_text_is_mathematics():
    """Neither metrics nor classes: Matplotlib would stop at a formula that it cannot set."""
    labels = np.arange(len(EVIL)).repeat(3)
    assert report.latent_map(np.random.default_rng(0).normal(size=(len(labels), 3)), labels, EVIL).shape == (
        480,
        480,
        3,
    )
    svg = report.curves(
        [{"step": step} | {f"{split}/{text}": 1.0 for text in EVIL for split in EVIL} for step in (1, 2)]
    )
    ElementTree.fromstring(svg)


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+C", "-C", "\tx", "'=x", "''-", "\uff1d1"])
def test_no_cell_is_a_formula(text):
    suffix, content = report.encode(report.Table([text, "n"], [[text, -1.5], ["CCO", "-0.25"], ["'tis", "[Na+]"]]))
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    assert suffix == ".csv"
    assert rows[0][0] == rows[1][0] == f"'{text}"
    assert report.unquoted(rows[1][0]) == text
    assert rows[1][1] == "-1.5"
    assert rows[2:] == [["CCO", "-0.25"], ["'tis", "[Na+]"]]
    assert [[report.unquoted(cell) for cell in row] for row in rows[2:]] == rows[2:]
