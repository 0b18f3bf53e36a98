"""A user's folder: what is read of it, what is left out, and that nothing in it is waited for."""

import os
import socket
from pathlib import Path

import pytest

from jaxgen.data.walk import files_below, left_out_notice, shown
from jaxgen.errors import UserError


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_and_what_is_left_out(tmp_path):
    root = tmp_path / "root"
    touch(
        root, "b.PNG", "a/deep/c.png", "a.jpg", "notes.txt", ".hidden.png", ".DS_Store", "Thumbs.db", "a/@eaDir/x.png"
    )
    touch(root, "__MACOSX/a/._c.png")
    files, left_out = files_below(root, {".png", ".jpg"})
    assert files == [Path("a.jpg"), Path("a/deep/c.png"), Path("b.PNG")]
    assert left_out == {
        "hidden or of the system": [".hidden.png", "__MACOSX", "a/@eaDir"],
        "of other formats": ["notes.txt"],
    }
    assert left_out_notice(left_out) == (
        "left out 3 hidden or of the system (.hidden.png, __MACOSX, a/@eaDir); 1 of other formats (notes.txt)"
    )
    assert left_out_notice({}) == ""
    assert left_out_notice({"broken links": list("abcd")}) == "left out 4 broken links (a, b, c, ...)"


def test_links_out_of_the_folder_and_what_would_be_waited_for(tmp_path, monkeypatch):
    root = tmp_path / "root"
    touch(tmp_path, "outside.png", "root/inside.png", "other/x.png")
    os.mkfifo(root / "pipe.png")
    (root / "null.png").symlink_to("/dev/null")
    (root / "out.png").symlink_to("../outside.png")
    (root / "in.png").symlink_to("inside.png")
    (root / "folder").symlink_to("../other")
    (root / "circle").symlink_to(".")
    (root / "loop.png").symlink_to("loop.png")
    (root / "nothing.png").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as unix:
        monkeypatch.chdir(root)  # the path of a socket has at most 100 bytes
        unix.bind("socket.png")
        files, left_out = files_below(root, {".png"})
    assert files == [Path("in.png"), Path("inside.png")]
    assert left_out == {
        "links to folders": ["circle"],
        "links out of the folder": ["folder", "null.png", "out.png"],
        "broken links": ["loop.png", "nothing.png"],
        "pipes, sockets or devices": ["pipe.png", "socket.png"],
    }


def test_the_folder_itself_may_be_a_link(tmp_path):
    touch(tmp_path, "real/a.png")
    (tmp_path / "link").symlink_to("real")
    assert files_below(tmp_path / "link", {".png"})[0] == [Path("a.png")]


def test_names_of_any_bytes(tmp_path):
    odd = os.fsdecode(b"caf\xe9\x1b[31m.png")
    touch(tmp_path, odd, "caf\u00e9.png", os.fsdecode(b"\xff.txt"))
    files, left_out = files_below(tmp_path, {".png"})
    assert files == [Path("caf\u00e9.png"), Path(odd)]
    assert [shown(file) for file in files] == ["caf\u00e9.png", r"caf\xe9\x1b[31m.png"]
    assert left_out == {"of other formats": [r"\xff.txt"]}
    assert shown("\ud800\n\u202e") == r"\ud800\n\u202e"


def test_a_folder_that_cannot_be_listed(tmp_path):
    with pytest.raises(UserError, match=r"cannot list the folder .*gone"):
        files_below(tmp_path / "gone", {".png"})
