"""TFDS data sets from raw files, without TensorFlow: `python -m jaxgen data prepare mnist --from DIR`.

A builder with the same name, version and features as tensorflow-datasets' own, which yields text, numbers or PNG bytes,
writes the same examples without TensorFlow, and `tfds.data_source` reads them. Its downloader is not used either:
offline it retries for minutes, and the files of MNIST and Fashion-MNIST have the same names, so in a shared download
folder they silently mix.
"""

import contextlib
import errno
import io
import os
import queue
import re
import sys
import tempfile
import threading
import urllib.error
import urllib.request
import zlib
from http.client import HTTPException
from pathlib import Path

from jaxgen.data.catalogue import LARGEST, RAW, RAW_AUDIO, RAW_MOLECULES, RAW_TEXT, Raw
from jaxgen.data.progress import watched
from jaxgen.data.reading import stored, unpacked
from jaxgen.errors import UserError, install
from jaxgen.terminal import say


def _raw(name: str) -> Raw:
    known = RAW | RAW_TEXT | RAW_AUDIO | RAW_MOLECULES
    if name not in known:
        raise UserError(f"cannot prepare {name!r} from raw files: expected one of {', '.join(known)}")
    return known[name]


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder of prepared data sets: `data_dir`, else TFDS's default, which TFDS_DATA_DIR changes."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared(data_dir: str | Path | None = None) -> dict[str, Path]:
    """Folder of every data set that TFDS has prepared under `data_dir`, by "name:version" or "name/config:version"."""
    root = data_folder(data_dir)
    found = {}
    for info in sorted([*root.glob("*/*/dataset_info.json"), *root.glob("*/*/*/dataset_info.json")]):
        folder = info.parent
        # TFDS writes to a folder "incomplete.*" and renames it at the end: what is not named by a version is no whole.
        if re.fullmatch(r"\d+\.\d+\.\d+", folder.name):
            found[f"{folder.parent.relative_to(root).as_posix()}:{folder.name}"] = folder
    return found


def find(name: str, data_dir: str | Path | None = None) -> Path | None:
    """The folder of a prepared data set, None when there is none.

    Args:
      name: "name", "name/config" or either with ":version"; without a version, the newest.
      data_dir: see `data_folder`.

    Raises:
      UserError: `name` has several prepared configurations and says not which.
    """
    found = {
        key: folder
        for key, folder in prepared(data_dir).items()
        if name in (key, key.partition(":")[0], key.partition("/")[0])
    }
    configs = sorted({key.partition(":")[0] for key in found})
    if len(configs) > 1:
        raise UserError(f"data set {name!r} is prepared in several configurations, name one: {', '.join(configs)}")
    return max(found.values(), key=lambda folder: [int(n) for n in folder.name.split(".")], default=None)


AGAIN = "delete this folder and prepare the data set again, or choose another --data.dir"


class UnavailableError(UserError):
    """A data set that is neither prepared nor downloadable."""


def fetch(name: str, data_dir: str | Path | None = None) -> Path:
    """The folder of a data set, which is downloaded and prepared where it is not yet.

    Args:
      name: a name of `RAW`, `RAW_TEXT`, `RAW_AUDIO` or `RAW_MOLECULES`.
      data_dir: see `data_folder`.

    Raises:
      UnavailableError: its files cannot be had or not be written, with the reason.
    """
    if (folder := find(name, data_dir)) is not None:
        return folder
    root = data_folder(data_dir)
    raw_dir = root / "downloads" / name  # a folder of its own: MNIST's and Fashion-MNIST's files have equal names
    try:
        download(name, raw_dir)
        return prepare(name, raw_dir=raw_dir, data_dir=data_dir)
    except UserError as error:
        raise UnavailableError(
            f"{name} is neither prepared in {root} nor downloadable ({error}); with its raw files in a folder DIR, "
            f"prepare it by: python -m jaxgen data prepare {name} --from DIR"
        ) from error


def prepare(name: str, *, raw_dir: str | Path, data_dir: str | Path | None = None) -> Path:
    """Write the TFDS data set `name` (ArrayRecord files) from its raw files, all of which are verified first.

    Args:
      name: a name of `RAW`, `RAW_TEXT`, `RAW_AUDIO` or `RAW_MOLECULES`.
      raw_dir: holds the files named there, an `.amat` file perhaps as `.amat.gz`.
      data_dir: see `data_folder`.

    Returns:
      The data set's folder, at once when it is prepared already.

    Raises:
      UserError: unknown name; a raw file is missing, truncated or has another sha256; `data_dir` cannot be written, or
        holds the data set in another format.
    """
    raw, raw_dir = _raw(name), Path(raw_dir).expanduser()
    if not raw_dir.is_dir():
        raise UserError(f"--from {raw_dir}: there is no such folder; expected the folder of {', '.join(raw.sha256)}")
    if (folder := find(name, data_dir)) is not None:
        if not any(folder.glob("*.array_record*")):
            raise UserError(f"{name} in {folder} is not stored as array_record: {AGAIN}")
        return folder
    contents = {file: _verified(name, raw_dir, file) for file in raw.sha256}
    root = data_folder(data_dir)
    say(f"preparing {name} in {root}", file=sys.stderr)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _write(name, contents, root)
    except ImportError as error:
        raise UserError(f"cannot write {name} without array_record ({error}): {install('array_record')}") from error
    except OSError as error:
        # Another process may have finished first; its folder is as good as ours.
        if (folder := find(name, root)) is None:
            raise UserError(f"cannot write {name} to {root} ({error}): choose another --data.dir") from error
        return folder
    return find(name, root)


def _verified(name: str, raw_dir: Path, file: str) -> bytes:
    """The contents of a raw file, once their sha256 is the expected one."""
    raw, path = _raw(name), raw_dir / file
    if not path.exists() and (raw_dir / f"{file}.gz").exists():
        path = raw_dir / f"{file}.gz"
    elif not path.exists() and raw.also:
        path = next(iter(sorted(raw_dir.glob(raw.also))), path)
    try:
        contents = stored(path, LARGEST)
        if path.name == f"{file}.gz":
            contents = unpacked(contents, LARGEST)
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: {name} is prepared from {', '.join(raw.sha256)}, get them from {raw.url}"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path} ({reason}): get it again from {raw.url}") from error
    found = raw.digest(contents)
    if found != raw.sha256[file]:
        raise UserError(
            f"{path} is truncated or not the right file: expected sha256 {raw.sha256[file]}, found {found} "
            f"({len(contents)} bytes); get it again from {raw.url}"
        )
    return contents


def _write(name: str, contents: dict[str, bytes], root: Path) -> None:
    """Run a TFDS builder with the name, version, features and example keys (so the order) of the stock one."""
    import tensorflow_datasets as tfds

    raw, features = _raw(name), _raw(name).features()

    class FromRaw(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(raw.version)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=raw.credit,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=(next(iter(features)), "label") if "label" in features else None,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in raw.splits}

        def _generate_examples(self, split):
            examples = raw.examples(split, *(contents[file] for file in raw.splits[split]))
            return watched(examples, f"{name} ({split}) examples")

    FromRaw.name = name  # the files are named by it
    tfds.disable_progress_bar()
    # TFDS prints to the terminal, and makes a download folder whether it downloads or not.
    with tempfile.TemporaryDirectory() as unused, contextlib.redirect_stdout(io.StringIO()):
        builder = FromRaw(data_dir=root, file_format="array_record")
        builder.download_and_prepare(
            download_dir=unused, download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )


def download(name: str, into: str | Path, *, timeout: float = 4.0) -> None:
    """Fetch the raw files of data set `name` into a folder of its own; files that are there and right are kept.

    Args:
      name: a name of `RAW`, `RAW_TEXT`, `RAW_AUDIO` or `RAW_MOLECULES`.
      into: the folder, made when the first file arrives. A file gets its name only when it is whole and verified.
      timeout: seconds to wait for a server's answer, name resolution included, and for each piece of a file.

    Raises:
      UserError: a file cannot be had or has the wrong sha256, with the reason; or the folder cannot be written.
    """
    raw, into = _raw(name), Path(into)
    for file, expected in raw.sha256.items():
        url, path, part = raw.url + file, into / file, into / f"{file}.{os.getpid()}.part"
        try:
            if path.exists() and raw.digest(stored(path, LARGEST)) == expected:
                continue
            with _open(url, timeout) as response:
                into.mkdir(parents=True, exist_ok=True)
                say(f"downloading {url}", file=sys.stderr)
                with part.open("wb") as target:
                    while piece := response.read(2**20):
                        target.write(piece)
                        if target.tell() > LARGEST:
                            raise OSError(errno.EFBIG, f"more than {LARGEST:,} bytes")
            found = raw.digest(stored(part, LARGEST))
            if found != expected:
                raise UserError(
                    f"cannot download {url}: expected sha256 {expected}, found {found} ({part.stat().st_size} bytes)"
                )
            os.replace(part, path)
        except (OSError, HTTPException) as error:  # urllib's errors and time limits are OSErrors
            reason = error.reason if type(error) is urllib.error.URLError else error
            raise UserError(f"cannot download {url}: {reason}") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()


def _open(url: str, timeout: float):
    """`urlopen` under a time limit that covers name resolution too, which no socket's time limit does."""
    answers = queue.Queue()

    def ask():
        try:
            answers.put(urllib.request.urlopen(url, timeout=timeout))
        except Exception as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it is a response as well, on an open socket
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()  # a daemon: a hanging resolver must not keep the process alive
    try:
        answer = answers.get(timeout=timeout)
    except queue.Empty:
        raise TimeoutError(f"no answer in {timeout:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
