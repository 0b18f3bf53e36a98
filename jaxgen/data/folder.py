"""A folder of the user's pictures as a data set: `folder:PATH`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgen.data import pictures
from jaxgen.data.progress import watched
from jaxgen.data.reading import path_of
from jaxgen.data.source import Arrays, Dataset
from jaxgen.data.splits import draws, for_testing
from jaxgen.data.walk import LeftOut, counted, files_below, left_out_notice, shown
from jaxgen.errors import UserError

SPLITS = {  # names of folders, lower case
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip


def load_folder(name: str, *, image_size: int | None = None, background: str = "white") -> Dataset:
    """Load the pictures below a folder.

    Folders named train, test and val (or valid, validation) are splits. Two or more folders, in the folder or in the
    split for training, are classes; few pictures above them are left out. A lone folder around everything else is
    looked into. Without a split for testing, a tenth of the pictures (at least six, of fewer than twelve half) is
    chosen for it by content: equal pictures are in one split, and a picture stays in its split when others are added.

    Args:
      name: "folder:PATH".
      image_size: crop the center square of every picture and resize it to this many pixels a side; None: as stored.
      background: color behind transparent pixels, a name or #rrggbb.

    Returns:
      Pictures in grey [N, H, W, 1], or [N, H, W, 3] if some have colors. The notice counts what was left out or
      converted.

    Raises:
      UserError: no such folder, fewer than two different pictures, most of them unreadable, mixed sizes, pictures that
        do not fit in memory.
    """
    root, fill = path_of(name), pictures.color(background)
    if shown(name) != name:
        raise UserError(
            f"{shown(name)}: expected a path of printable text: rename the folder, or link to it by another"
        )
    if not root.is_dir():
        raise UserError(
            f"{name}: there is no folder {root}; expected folder:PATH with the path of a folder of pictures"
        )
    paths, left_out = files_below(root, pictures.SUFFIXES)
    layout = arranged(name, paths, left_out)
    found, notes = _read(name, root, layout, left_out, image_size, fill)
    digests = {place: picture.digest for place, picture in found.items()}
    splits = {split: [place for place in places if place in found] for split, places in layout.splits.items()}
    if not splits.get("test"):
        train = np.array(splits["train"])
        if len({digests[place] for place in train}) < 2:
            raise UserError(f"{name}: expected at least 2 different pictures to train and test on, found copies of one")
        is_test = for_testing([digests[place] for place in train])
        splits |= {"train": train[~is_test].tolist(), "test": train[is_test].tolist()}
        if layout.given:
            notes.append(f"without a folder for testing, {is_test.sum():,} pictures for training are for testing")
    known = {digests[place] for place in splits["train"]}
    for split in [split for split in splits if split != "train"]:
        places = splits[split]
        if copies := sum(digests[place] in known for place in places):
            notes.append(f"{copies:,} of {len(places):,} pictures for {split} are also in the split for training")
        # The first ones are shown, and should not all be of one class.
        mixed = np.argsort(draws([digests[place] for place in places]), kind="stable")
        splits[split] = [places[place] for place in mixed]
    channels = max(picture.pixels.shape[-1] for picture in found.values())

    def arrays(places: list[int]) -> Arrays:
        shape = (*found[places[0]].pixels.shape[:2], channels)  # grey pictures among others get three equal channels
        images = np.stack([np.broadcast_to(found[place].pixels, shape) for place in places])
        labels = {"label": np.array([layout.labels[i] for i in places], np.int32)} if layout.classes else {}
        return {"image": images} | labels

    return Dataset(
        name=name,
        train=arrays(splits["train"]),
        test=arrays(splits["test"]),
        validation=arrays(splits["validation"]) if splits.get("validation") else None,
        classes=tuple(shown(one) for one in layout.classes),
        notice="; ".join(filter(None, [left_out_notice(left_out), *layout.notes, *notes])) or None,
        source=f"{sum(map(len, splits.values())):,} pictures in {shown(root.resolve())}",
    )


# Reading --------------------------------------------------------------------------------------------------------------


def _read(
    name: str,
    root: Path,
    layout: "Layout",
    left_out: LeftOut,
    image_size: int | None,
    background: tuple[int, int, int],
) -> tuple[dict[int, pictures.Picture], list[str]]:
    """Decode the pictures, all of one size; return those that can be read, and notes on what was converted."""
    found: dict[int, pictures.Picture] = {}
    unreadable: list[str] = []
    reason, paths = "", layout.paths
    for place in watched(paths, "pictures", len(paths)):
        try:
            with (root / paths[place]).open("rb") as file:
                found[place] = picture = pictures.read(file, image_size=image_size, background=background)
        except Exception as error:  # damaged files make Pillow raise a dozen types
            reason = reason or f"{shown(paths[place])}: {getattr(error, 'strerror', None) or error}"
            unreadable.append(shown(paths[place]))
            continue
        if len(found) == 1:
            first = place
            _check_memory(name, len(paths) * picture.pixels.nbytes)
        elif picture.pixels.shape[:2] != found[first].pixels.shape[:2]:
            sizes = [
                f"{shown(paths[i])} is {found[i].pixels.shape[1]}x{found[i].pixels.shape[0]}" for i in (first, place)
            ]
            raise UserError(
                f"{name}: pictures of mixed sizes: {', '.join(sizes)}; pass --data.image-size N to crop and resize them"
            )
    if unreadable:
        left_out["unreadable"] = unreadable
    if len(found) < 2 or len(unreadable) > len(found):
        parts = [left_out_notice(left_out), reason]
        raise UserError(
            f"{name}: expected at least 2 pictures ({', '.join(sorted(pictures.SUFFIXES))}), most of them readable, "
            f"found {len(found)}{''.join(f'; {part}' for part in parts if part)}"
        )
    changed = {
        "animated, of which the first frame is used": [shown(paths[i]) for i, each in found.items() if each.animated],
        "scaled from 16 bits per channel to 8": [shown(paths[i]) for i, each in found.items() if each.deep],
    }
    return found, [counted(names, how) for how, names in changed.items() if names]


def _check_memory(name: str, size: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory / 3:  # it is copied into splits
        raise UserError(
            f"{name}: expected pictures that fit in memory ({memory / 2**30:,.0f} GiB), found {size / 2**30:,.0f} GiB; "
            "pass --data.image-size N to resize them"
        )


# Splits and classes ---------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """What the folders mean.

    paths: of the files that belong to a split, by their place in the list of all.
    splits: places of "train", and of "test" and "validation" where folders are named so.
    given: whether folders are splits.
    classes: names of the folders that are classes, in order.
    labels: index of the class of each place, if there are classes.
    notes: what may surprise.
    """

    paths: dict[int, Path]
    splits: dict[str, list[int]]
    given: bool
    classes: list[str]
    labels: dict[int, int]
    notes: list[str]


def arranged(name: str, paths: Sequence[Path], left_out: LeftOut, what: str = "pictures") -> Layout:
    """Find the splits and classes of files by their paths inside the folder.

    Args:
      name: of the data set, for errors.
      paths: relative to the folder.
      left_out: gets the files that belong to no split or class, by reason.
      what: word for the files, for notes.

    Raises:
      UserError: folders for testing or validation, and none for training.
    """
    inside = {place: path.parts for place, path in enumerate(paths)}
    while len({parts[0] for parts in inside.values()}) == 1 and all(len(parts) > 1 for parts in inside.values()):
        inside = {place: parts[1:] for place, parts in inside.items()}
    tops = {parts[0] for parts in inside.values() if len(parts) > 1}
    roles = {top: SPLITS[top.lower()] for top in tops if top.lower() in SPLITS}
    kinds = set(roles.values())
    if roles and tops == roles.keys() and "train" not in kinds:
        raise UserError(f"{name}: expected a folder train beside {' and '.join(sorted(map(shown, tops)))}, found none")
    # Beside other folders, one named train alone may be a class (of vehicles).
    given = "train" in kinds and (len(kinds) > 1 or tops == roles.keys())
    splits = {"train": inside}
    if given:
        splits = {kind: {} for kind in ("train", "test", "validation") if kind in kinds}
        for place, parts in inside.items():
            if len(parts) > 1 and parts[0] in roles:
                splits[roles[parts[0]]][place] = parts[1:]
        _skip(
            left_out, "in no folder of a split", [paths[i] for i in inside if not any(i in s for s in splits.values())]
        )
    deeper = {place: parts for place, parts in splits["train"].items() if len(parts) > 1}
    above = [paths[place] for place in splits["train"] if place not in deeper]
    classes, labels, notes = sorted({parts[0] for parts in deeper.values()}, key=os.fsencode), {}, []
    several = len(above) > max(1, len(deeper) // 10)  # too many to leave out
    if len(classes) > 1 and several:
        notes.append(f"folders are no classes, since {len(above):,} of {len(splits['train']):,} {what} are in none")
    if len(classes) < 2 or several:
        classes = []
    for split, places in splits.items() if classes else ():
        splits[split] = {i: parts for i, parts in places.items() if len(parts) > 1 and parts[0] in classes}
        labels |= {i: classes.index(parts[0]) for i, parts in splits[split].items()}
        _skip(left_out, "in no folder of a class", [paths[i] for i in places if i not in labels])
    kept = {place: paths[place] for places in splits.values() for place in places}
    return Layout(kept, {split: list(places) for split, places in splits.items()}, given, classes, labels, notes)


def _skip(left_out: LeftOut, reason: str, paths: Sequence[Path]) -> None:
    if paths:
        left_out.setdefault(reason, []).extend(map(shown, paths))
