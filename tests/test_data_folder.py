"""A folder of pictures as people have them: splits, classes, formats, what is left out, and what is said of it."""

import io
import os
import re
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import load_images, pictures
from jaxgen.data.folder import load_folder
from jaxgen.errors import UserError


def picture(seed, size=(8, 8), mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    return Image.fromarray(pixels if len(mode) > 1 else pixels[..., 0])


def save(root, pictures, **options):
    for path, image in pictures.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / path, **options)
    return f"folder:{root}"


def several(folder, count, start=0):
    return {f"{folder}/{i}.png": picture(start + i) for i in range(count)}


def all_images(data):
    return np.concatenate([data.train["image"], data.test["image"]])


def rows(arrays):
    return [image.tobytes() for image in arrays["image"]]


# Classes --------------------------------------------------------------------------------------------------------------


def test_folders_are_classes(tmp_path):
    pictures = several("cat/deep", 20) | several("dog/deep", 20, 100)
    data = load_images(save(tmp_path, pictures))
    assert data.name == f"folder:{tmp_path}"
    assert data.classes == ("cat", "dog")
    assert data.notice is None
    by_image = {np.asarray(image).tobytes(): path[:3] for path, image in pictures.items()}
    for arrays in (data.train, data.test):
        assert arrays["image"].dtype == np.uint8
        assert arrays["label"].dtype == np.int32
        assert [by_image[row] for row in rows(arrays)] == [data.classes[label] for label in arrays["label"]]
    assert all_images(data).shape == (40, 8, 8, 3)


def test_a_folder_around_everything_is_looked_into(tmp_path):
    assert load_folder(save(tmp_path, several("pets/cat", 9) | several("pets/dog", 9, 9))).classes == ("cat", "dog")


def test_a_stray_picture_above_the_classes_is_named(tmp_path):
    pictures = several("cat", 9) | several("dog", 9, 9) | {"cover.png": picture(99, (30, 20))}
    data = load_folder(save(tmp_path, pictures))
    assert data.classes == ("cat", "dog")
    assert len(all_images(data)) == 18
    assert data.notice == "left out 1 in no folder of a class (cover.png)"


def test_folders_beside_more_pictures_are_no_classes(tmp_path):
    data = load_folder(save(tmp_path, several(".", 2) | several("cat", 6, 9) | several("dog", 6, 20)))
    assert data.classes == ()
    assert data.train.keys() == data.test.keys() == {"image"}
    assert len(all_images(data)) == 14
    assert data.notice == "folders are no classes, since 2 of 14 pictures are in none"


def test_without_folders_there_are_no_classes(tmp_path):
    data = load_folder(save(tmp_path, {"a.png": picture(0), "b.JPG": picture(1), "more/c.jpeg": picture(2)}))
    assert data.classes == ()
    assert len(all_images(data)) == 3


# Splits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["", "archive/"])
@pytest.mark.parametrize("validation", ["val", "Valid", "validation"])
def test_folders_are_splits_of_classes(tmp_path, validation, around):
    counts = {"Train/cat": 5, "Train/dog": 6, "test/cat": 2, "test/dog": 1, f"{validation}/dog": 2}
    pictures = {}
    for start, (folder, count) in enumerate(counts.items()):
        pictures |= several(around + folder, count, 100 * start)
    data = load_folder(save(tmp_path, pictures))
    assert data.classes == ("cat", "dog")
    for arrays, expected in ((data.train, [5, 6]), (data.test, [2, 1]), (data.validation, [0, 2])):
        assert np.bincount(arrays["label"], minlength=2).tolist() == expected
    assert data.notice is None


def test_folders_are_splits_without_classes(tmp_path):
    pictures = several("train/pages", 5) | several("test", 3, 10) | several("valid", 2, 20) | {"a.png": picture(30)}
    data = load_folder(save(tmp_path, pictures))
    assert data.classes == ()
    assert [len(arrays["image"]) for arrays in (data.train, data.test, data.validation)] == [5, 3, 2]
    assert data.notice == "left out 1 in no folder of a split (a.png)"


def test_a_split_for_training_alone(tmp_path):
    for inside, classes in (("", ()), ("cat/", ("cat", "dog"))):
        root = tmp_path / (inside or "flat")
        other = several("train/dog", 20, 50) if inside else {}
        data = load_folder(save(root, several(f"train/{inside}", 20) | other))
        assert data.classes == classes
        assert len(all_images(data)) == 20 + len(other)
        assert data.validation is None


def test_without_a_split_for_testing_one_is_held_out_of_training(tmp_path):
    data = load_folder(save(tmp_path, several("train", 20) | several("val", 5, 50)))
    assert [len(arrays["image"]) for arrays in (data.train, data.test, data.validation)] == [14, 6, 5]
    assert data.notice == "without a folder for testing, 6 pictures for training are for testing"


def test_pictures_for_testing_without_their_class_cannot_be_used(tmp_path):
    """As in competitions; nor can those of a class that nothing was trained on."""
    pictures = (
        several("train/cat", 9) | several("train/dog", 9, 9) | several("test", 3, 50) | several("test/cow", 1, 60)
    )
    data = load_folder(save(tmp_path, pictures))
    assert data.classes == ("cat", "dog")
    assert len(all_images(data)) == 18
    assert "left out 4 in no folder of a class (test/0.png, test/1.png, test/2.png, ...)" in data.notice
    assert "without a folder for testing, 6 pictures" in data.notice


def test_a_folder_named_train_may_be_a_class(tmp_path):
    data = load_folder(save(tmp_path, several("train", 9) | several("bus", 9, 9)))
    assert data.classes == ("bus", "train")


def test_a_split_for_testing_alone_is_no_data_set(tmp_path):
    with pytest.raises(UserError, match="expected a folder train beside test and val, found none"):
        load_folder(save(tmp_path, several("test", 9) | several("val", 9, 9)))


def test_small_folders_hold_out_enough_to_measure(tmp_path):
    """In both splits one picture at least, whatever there is."""
    for count, held_out in ((2, 1), (3, 1), (5, 2), (30, 6)):
        data = load_folder(save(tmp_path / str(count), several(".", count)))
        assert (len(data.train["image"]), len(data.test["image"])) == (count - held_out, held_out)


def test_the_first_held_out_pictures_are_of_all_classes(tmp_path):
    """They are looked at, and may be all that is."""
    for around in ("", "test/"):
        pictures = several(f"{around}cat", 200) | several(f"{around}dog", 200, 200)
        pictures |= several("train/cat", 2, 500) | several("train/dog", 2, 600) if around else {}
        data = load_folder(save(tmp_path / f"given{around}", pictures))
        assert sorted(set(data.test["label"][:10].tolist())) == [0, 1]


def test_a_split_keeps_when_pictures_are_added_or_renamed(tmp_path):
    name = save(tmp_path / "a", several(".", 100))
    before = set(rows(load_folder(name).test))
    assert 3 <= len(before) <= 20
    save(tmp_path / "a", several("new", 50, 1000))
    assert before <= set(rows(load_folder(name).test))
    renamed = save(tmp_path / "b", {f"other/{99 - i}.bmp": picture(i) for i in range(100)})
    assert set(rows(load_folder(renamed).test)) == before


def test_copies_of_a_picture_are_in_one_split(tmp_path):
    """Under other names, and as other files of the same pixels."""
    name = save(tmp_path, several("one", 40) | {f"again{i}.webp": picture(i) for i in range(40)}, lossless=True)
    save(tmp_path, {f"bitmaps/{i}.bmp": picture(i) for i in range(40)})
    data = load_folder(name)
    assert len(all_images(data)) == 120
    assert len(set(rows(data.test))) == len(data.test["image"]) / 3 >= 4
    assert not set(rows(data.test)) & set(rows(data.train))
    with pytest.raises(UserError, match=r"at least 2 different pictures .* found copies of one"):
        load_folder(save(tmp_path / "same", {"a.png": picture(0), "b.bmp": picture(0)}))


def test_copies_in_two_given_splits_are_counted(tmp_path):
    data = load_folder(save(tmp_path, several("train", 9) | several("test", 5, 6) | several("val", 2, 20)))
    assert data.notice == "3 of 5 pictures for test are also in the split for training"


# Formats --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "webp"])
def test_lossless_formats_are_read(tmp_path, suffix):
    name = save(
        tmp_path, {f"{i}.{suffix}": picture(i) for i in range(2)}, **({"lossless": True} if suffix == "webp" else {})
    )
    assert sorted(rows({"image": all_images(load_folder(name))})) == sorted(picture(i).tobytes() for i in range(2))


def read(image, background=(255, 255, 255), suffix="png", **options):
    file = io.BytesIO()
    image.save(file, suffix, **options)
    file.seek(0)
    return pictures.read(file, image_size=None, background=background)


def test_transparent_pixels_are_the_background():
    """Whatever colors lie hidden below them; half transparent ones are halfway."""
    rgba = np.full((2, 3, 4), 100, np.uint8)
    rgba[..., 3] = [[0, 255, 128]] * 2
    for image in (Image.fromarray(rgba), Image.fromarray(rgba[..., 2:], mode="LA")):
        found = read(image).pixels
        assert found.shape[-1] == len(image.getbands()) - 1
        np.testing.assert_array_equal(found[0, :2, 0], [255, 100])
        assert abs(int(found[0, 2, 0]) - 177) <= 1
    np.testing.assert_array_equal(read(Image.fromarray(rgba), (10, 20, 30)).pixels[0, 0], [10, 20, 30])
    np.testing.assert_array_equal(
        read(Image.fromarray(rgba[..., 2:], mode="LA"), (10, 20, 30)).pixels[0, 0], [10, 20, 30]
    )


def test_transparency_of_palettes_and_single_colors():
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([200, 0, 0, 0, 0, 200])
    for suffix in ("png", "gif"):
        found = read(palette, suffix=suffix, transparency=0).pixels
        np.testing.assert_array_equal(found, [[[255, 255, 255], [0, 0, 200]]])
    np.testing.assert_array_equal(read(palette).pixels, [[[200, 0, 0], [0, 0, 200]]])
    grey = Image.fromarray(np.array([[7, 9]], np.uint8))
    np.testing.assert_array_equal(read(grey, transparency=7).pixels, [[[255], [9]]])


def test_other_depths_and_color_spaces():
    deep = read(Image.fromarray(np.array([[0, 257, 32_768, 65_535]], np.uint16)))
    np.testing.assert_array_equal(deep.pixels[0, :, 0], [0, 1, 128, 255])
    assert deep.deep
    for image, expected in (
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), [255, 0, 0]),
        (Image.new("1", (1, 1), 1), [255]),
        (Image.new("YCbCr", (1, 1), (255, 128, 128)), [255, 255, 255]),
    ):
        np.testing.assert_array_equal(read(image, suffix="tiff").pixels[0, 0], expected)
    with pytest.raises(ValueError, match="8 or 16 bits"):
        read(Image.fromarray(np.ones((2, 2), np.float32)), suffix="tiff")


def test_pictures_are_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to look at it
    image = picture(0, (8, 5))
    np.testing.assert_array_equal(read(image, exif=exif).pixels, np.rot90(np.asarray(image), -1))


def test_grey_pictures_among_colored_ones(tmp_path):
    grey = save(tmp_path / "grey", {"a.png": picture(0, mode="L"), "b.png": picture(1, mode="L")})
    assert load_folder(grey).train["image"].shape == (1, 8, 8, 1)
    images = all_images(load_folder(save(tmp_path, {"c.png": picture(2)})))
    assert images.shape == (3, 8, 8, 3)
    assert sum((image == np.asarray(picture(0, mode="L"))[..., None]).all() for image in images) == 1


def test_background_by_name_and_number(tmp_path):
    name = save(tmp_path, {f"{i}.png": Image.new("RGBA", (2, 2), (i, i, i, 0)) for i in range(2)} | several(".", 2))
    name = save(tmp_path / "x", {f"{i}.png": Image.new("RGBA", (2, 2), (0, 0, i, 255 * i)) for i in range(2)})
    for text, expected in (("black", 0), ("#000000", 0), ("White", 255)):
        images = all_images(load_images(name, background=text))
        assert sorted(images[:, 0, 0, 0].tolist()) == [0, expected]
    for text in ("whight", "#12345", "rgb(1,2,3)", "255", ""):
        with pytest.raises(UserError, match=rf"--data.background '{re.escape(text)}': expected a color name"):
            load_images(name, background=text)


# What cannot be used --------------------------------------------------------------------------------------------------


def test_what_is_left_out_or_converted_is_said(tmp_path):
    name = save(tmp_path, several(".", 9))
    picture(20).save(tmp_path / "moving.gif", save_all=True, append_images=[picture(21)])
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8)).save(tmp_path / "deep.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    (tmp_path / "IMG.HEIC").touch()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "._0.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    data = load_folder(name)
    assert len(all_images(data)) == 11
    assert data.notice == (
        "left out 1 of other formats (IMG.HEIC); 1 hidden or of the system (__MACOSX); 1 links out of the folder "
        "(link.png); 1 pipes, sockets or devices (pipe.png); 1 unreadable (broken.png); 1 animated, of which the first "
        "frame is used (moving.gif); 1 scaled from 16 bits per channel to 8 (deep.png)"
    )


def test_names_of_any_bytes(tmp_path):
    folder = os.fsdecode(b"caf\xe9\x1b[31m")
    data = load_folder(save(tmp_path, several(folder, 9) | several("tea", 9, 9)))
    assert data.classes == (r"caf\xe9\x1b[31m", "tea")
    with pytest.raises(UserError, match=r"caf\\xe9\\x1b\[31m: expected a path of printable text"):
        load_folder(f"folder:{tmp_path / folder}")


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def test_a_program_named_like_a_picture_is_not_opened(tmp_path, monkeypatch):
    """PostScript would go to Ghostscript, which runs it."""
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "EpsImageFile", lambda *args: pytest.fail("it was opened"))
    name = save(tmp_path, several(".", 3))
    (tmp_path / "program.png").write_bytes(POSTSCRIPT)
    assert load_folder(name).notice == "left out 1 unreadable (program.png)"
    with pytest.raises(ValueError, match="expected PNG, JPEG"):
        pictures.read(io.BytesIO(POSTSCRIPT), image_size=None, background=(0, 0, 0))


def bomb():
    """A PNG that claims 20,000 x 20,000 pixels."""
    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, "png")
    content = bytearray(file.getvalue())
    content[16:24] = (20_000).to_bytes(4) * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    return bytes(content)


def test_a_bomb_is_left_out(tmp_path, monkeypatch):
    name = save(tmp_path, several(".", 3))
    (tmp_path / "bomb.png").write_bytes(bomb())
    for most in (Image.MAX_IMAGE_PIXELS, 10**8 * 3, None):  # Pillow warns of less than twice as many
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        assert load_folder(name).notice == "left out 1 unreadable (bomb.png)"
        with pytest.raises(ValueError, match="at most 89,478,485 pixels"):
            pictures.read(io.BytesIO(bomb()), image_size=8, background=(0, 0, 0))


def test_folders_of_which_most_is_unreadable(tmp_path):
    name = save(tmp_path, several(".", 3))
    whole = (tmp_path / "1.png").read_bytes()
    for damage in (b"not an image", whole[:60], b""):
        for i in (1, 2):
            (tmp_path / f"{i}.png").write_bytes(damage)
        with pytest.raises(
            UserError, match=r"expected at least 2 pictures .*found 1; left out 2 unreadable .*; 1.png: "
        ):
            load_folder(name)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match=f"there is no folder {tmp_path}/nowhere"):
        load_folder(f"folder:{tmp_path}/nowhere")
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UserError, match=r"at least 2 pictures .* found 0; left out 1 of other formats \(notes.txt\)"):
        load_folder(f"folder:{tmp_path}")
    with pytest.raises(UserError, match=r"found 1"):
        load_folder(save(tmp_path, {"only.png": picture(0)}))


def test_pictures_of_mixed_sizes(tmp_path):
    name = save(tmp_path, several(".", 2) | {"c.png": picture(2, (12, 9))})
    with pytest.raises(UserError, match=r"mixed sizes: 0.png is 8x8, c.png is 12x9; pass --data.image-size N"):
        load_folder(name)
    assert all_images(load_folder(name, image_size=4)).shape == (3, 4, 4, 3)


def test_pictures_that_do_not_fit_in_memory(tmp_path, monkeypatch):
    name = save(tmp_path, several(".", 3))
    monkeypatch.setattr(os, "sysconf", lambda name: 20)
    with pytest.raises(UserError, match=r"expected pictures that fit in memory .* pass --data.image-size N"):
        load_folder(name)


def test_image_size_crops_the_center(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = (10, 20, 30)
    other = wide.copy()
    other[0, 0] = 1
    name = save(tmp_path, {"a.png": Image.fromarray(wide), "b.png": Image.fromarray(other)})
    assert (load_folder(name, image_size=10).train["image"] == np.array([10, 20, 30])).all()
