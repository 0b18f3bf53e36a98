import io
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from jaxgen import report


def test_page_escapes_what_came_from_data_or_user():
    evil = "<script>alert(1)</script>"
    page = report.page(
        title=evil,
        command=evil,
        figures={evil: evil},
        pictures={evil: report.png(np.zeros((2, 2, 1), np.uint8))},
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


def test_png_is_read_back():
    picture = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(report.png(picture, zoom=1)))), picture)
    assert Image.open(io.BytesIO(report.png(picture, zoom=3))).size == (18, 15)
