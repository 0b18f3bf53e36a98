"""Sounds by name, as waveforms in memory: plucked strings made here, spoken digits, a folder of recordings."""

import difflib
import hashlib
import io
import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxgen.data.catalogue import RAW_AUDIO
from jaxgen.data.folder import arranged
from jaxgen.data.prepare import UnavailableError, fetch
from jaxgen.data.prepared import describe, examples, readable
from jaxgen.data.progress import watched
from jaxgen.data.reading import contents, path_of
from jaxgen.data.source import Arrays, Dataset, check, hold_out
from jaxgen.data.splits import for_testing
from jaxgen.data.walk import counted, files_below, left_out_notice, shown
from jaxgen.errors import UserError, install

NAMES = ("notes", "spoken_digit")
SECONDS = {"notes": 0.256, "spoken_digit": 0.64}  # of an example, where nothing else is asked for; of recordings 1
LOWEST = 60  # C4, 261.6 Hz, in MIDI's numbers
OCTAVE = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
PITCHES = tuple(f"{OCTAVE[n % 12]}{n // 12 - 1}" for n in range(LOWEST, LOWEST + 13))  # an octave, to C5
BRIGHTNESS = ("soft", "bright")
DIGITS = tuple("0123456789")
HELD_OUT = 5  # recordings of each digit and speaker, the first ones: the data set's own convention
MARGIN = 0.02  # seconds of what is silent that stay before and after a recording
SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"})
LONGEST = 2**28  # samples of one recording: 93 minutes at 48 kHz; a small file can decompress to any length
SILENT = 0.02  # amplitude, as a share of the loudest, below which something is silent


def load_audio(
    name: str,
    *,
    data_dir: str | Path | None = None,
    strict: bool = False,
    sample_rate: int = 8_000,
    seconds: float | None = None,
    joint: bool = False,
    channel: str = "mix",
    validation: float = 0.0,
) -> Dataset:
    """Load sounds; `notes` with a notice where a data set that is downloaded cannot be had.

    Examples are {"audio": int16 [N, T], "label": int32 [N]} and what else is known of them, int32 [N]: "brightness" of
    notes (labelled by their pitch), "speaker" of digits, the names in alphabetical order. What is shorter than T ends
    in silence; test and validation examples have a "length", int32 [N], samples that are the recording's own.

    Args:
      name: `notes` (made here), `spoken_digit` (downloaded and prepared when it is not yet), or `audio:PATH` (WAV and
        FLAC files anywhere below a folder, also OGG, MP3 and AIFF; subfolders are splits and labels as for pictures,
        see `jaxgen.data.folder`; a long file becomes several examples). Silence before and after recordings is cut off.
      data_dir: folder of TFDS's prepared data sets; None: TFDS's default.
      strict: a UserError instead of falling back to `notes`.
      sample_rate: samples per second, to which recordings are converted.
      seconds: of an example; None: 0.256 of notes, 0.64 of digits, 1 of recordings.
      joint: label by pitch and brightness, or digit and speaker: there are then as many classes as pairs.
      channel: of recordings: "mix" (the mean of all channels), "left", "right", or a number from 1.
      validation: share of the training examples to hold out, see `source.hold_out`; all of a file or none.

    Raises:
      UserError: unknown or unreadable data, a file that is no sound, a package that is missing.
    """
    if sample_rate < 1_000:
        raise UserError(f"--data.sample-rate {sample_rate}: expected at least 1000 samples per second")
    if seconds is not None and not seconds * sample_rate >= 64:
        raise UserError(f"--data.seconds {seconds}: expected at least 64 samples, {64 / sample_rate:g} seconds")
    if joint and name.startswith("audio:"):
        raise UserError("--data.joint: recordings have one label at most, their folder; leave it out")

    def length(name: str) -> int:
        return round((seconds or SECONDS.get(name, 1.0)) * sample_rate)

    notice, files = None, None
    if name == "spoken_digit":
        try:
            folder = fetch(name, data_dir)
        except UnavailableError as error:
            if strict:
                raise UserError(f"{error}; --data.strict forbids training on notes instead") from error
            notice = f"using notes, plucked strings made here, instead of {name}: {error} (--data.strict: an error)"
            name = "notes"
        else:
            data = _spoken_digit(folder, sample_rate, length(name), joint)
    if name == "notes":
        data = _notes(sample_rate, length(name), joint, notice)
    elif name.startswith("audio:"):
        data, files = _files(name, sample_rate, length(name), channel)
    elif name not in NAMES:
        close = difflib.get_close_matches(name, NAMES)
        raise UserError(
            f"unknown sounds {name!r}"
            + (f", did you mean {' or '.join(close)}?" if close else ":")
            + f" Expected {', '.join(NAMES)}, or audio:PATH for a folder of WAV and FLAC files"
        )
    check(data.train, f"{data.name} (train)")
    check(data.test, f"{data.name} (test)")
    data = hold_out(data, validation, files)
    return replace(data, train={name: array for name, array in data.train.items() if name != "length"})


def frequency(pitch: str) -> float:
    """Of a note such as "A4" (440 Hz) or "C#3 soft", in equal temperament."""
    return 440 * 2 ** ((LOWEST + PITCHES.index(pitch.split()[0]) - 69) / 12)


# Plucked strings ------------------------------------------------------------------------------------------------------


def _notes(rate: int, length: int, joint: bool, notice: str | None) -> Dataset:
    """160 of each pitch to train on, 10 to test on; half of them are soft. Always the same ones."""
    rng = np.random.default_rng(0)

    def split(each: int) -> Arrays:
        pitch = np.tile(np.arange(len(PITCHES)), each).astype(np.int32)
        brightness = (np.arange(len(pitch)) // len(PITCHES) % 2).astype(np.int32)
        hertz = np.array([frequency(name) for name in PITCHES])[pitch]
        return {"audio": pluck(hertz, brightness, rate, length, rng), "label": pitch, "brightness": brightness} | {
            "length": np.full(len(pitch), length, np.int32)
        }

    return _labelled(
        "notes",
        split(160),
        split(10),
        PITCHES,
        ("brightness", BRIGHTNESS),
        joint,
        source=f"plucked strings, synthesised here (Karplus and Strong 1983), {rate} samples per second",
        notice=notice,
    )


def pluck(hertz: np.ndarray, brightness: np.ndarray, rate: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Strings of those frequencies [N], soft (0) or bright (1), as int16 [N, length].

    What is in a delay of one period goes round and is smoothed and damped each time: y[t] = g ((1 - s) v[t] +
    s v[t - 1]), v being y delayed (Karplus & Strong 1983). The delay is tuned by an allpass filter to the fraction of a
    sample, what the smoothing delays included (Jaffe & Smith 1983, eq. 13 to 16). At first it holds the triangle of a
    string that is pulled at some place, so that the note has its fundamental, and noise, of bright strings more.
    """
    count, period, omega = len(hertz), rate / hertz, 2 * np.pi * hertz / rate
    bright = brightness == 1
    smoothing = np.where(bright, rng.uniform(0.1, 0.2, count), rng.uniform(0.4, 0.5, count))
    decay = rng.uniform(0.3, 1.0, count)  # seconds to a thousandth of the amplitude
    gain = 10 ** (-3 * period / rate / decay)
    delayed = np.arctan2(smoothing * np.sin(omega), 1 - smoothing + smoothing * np.cos(omega)) / omega
    whole = np.floor(period - delayed - 0.1).astype(int)
    fraction = period - delayed - whole  # 0.1 to 1.1 samples, where the allpass filter is stable
    allpass = np.sin(omega * (1 - fraction) / 2) / np.sin(omega * (1 + fraction) / 2)

    longest = int(np.ceil(period.max()))
    phase, place = np.arange(longest) / period[:, None], rng.uniform(0.1, 0.4, (count, 1))
    burst = np.minimum(phase / place, (1 - phase) / (1 - place)) - 0.5
    burst += np.where(bright, 1.0, 0.2)[:, None] * rng.uniform(-0.5, 0.5, burst.shape)
    burst *= phase < 1

    y = np.zeros((length, count))
    ring, rows = np.zeros((whole.max() + 1, count)), np.arange(count)
    before, tuned, tuned_before = np.zeros(count), np.zeros(count), np.zeros(count)
    for t in range(length):
        v = ring[(t - whole) % len(ring), rows]
        tuned_before, tuned = tuned, allpass * (v - tuned) + before
        before = v
        y[t] = gain * ((1 - smoothing) * tuned + smoothing * tuned_before)
        if t < longest:
            y[t] += burst[:, t]
        ring[t % len(ring)] = y[t]
    loudness = rng.uniform(0.5, 0.9, count) / np.abs(y).max(0)
    return np.round(y * loudness * 32_767).astype(np.int16).T.copy()


# Spoken digits --------------------------------------------------------------------------------------------------------


def _spoken_digit(folder: Path, rate: int, length: int, joint: bool) -> Dataset:
    """Recordings 05 and above of each digit and speaker to train on, 00 to 04 to test on."""
    name = "spoken_digit"
    with readable(name, folder):
        recordings = sorted(
            (one["audio/filename"].bytes_list.value[0].decode(), np.array(one["audio"].int64_list.value, np.int16))
            for one in examples(describe(name, folder), "train")
        )
    speakers = sorted({file.split("_")[1] for file, _ in recordings})
    splits: dict[bool, list] = {False: [], True: []}
    for file, wave in recordings:
        digit, speaker, index = Path(file).stem.split("_")
        audio, own = fitted(trimmed(resampled(wave, 8_000, rate), rate), length)
        splits[int(index) < HELD_OUT].append((audio, int(digit), speakers.index(speaker), own))
    train, test = (
        dict(zip(("audio", "label", "speaker", "length"), map(np.array, zip(*rows, strict=True)), strict=True))
        for rows in (splits[False], splits[True])
    )
    as_int = {"label": np.int32, "speaker": np.int32, "length": np.int32, "audio": np.int16}
    train, test = ({key: array.astype(as_int[key]) for key, array in part.items()} for part in (train, test))
    return _labelled(
        name, train, test, DIGITS, ("speaker", tuple(speakers)), joint, source=RAW_AUDIO[name].credit, notice=None
    )


# Recordings -----------------------------------------------------------------------------------------------------------


def _files(name: str, rate: int, length: int, channel: str) -> tuple[Dataset, Sequence[bytes]]:
    """Sounds below a folder, whose subfolders may be splits and classes; see `jaxgen.data.folder.arranged`.

    Without a folder for testing, a tenth of the recordings is chosen for it by content. The second value is the hash of
    the recording of each training example.
    """
    root, index = path_of(name), _index_of(channel)
    if not root.is_dir():
        raise UserError(
            f"{shown(name)}: there is no folder {shown(root)}; expected audio:PATH with the path of a folder of sounds"
        )
    try:
        import soundfile  # noqa: F401
    except ModuleNotFoundError:
        raise UserError(f"audio:PATH needs the package soundfile: {install('soundfile')}") from None
    files, left_out = files_below(root, SUFFIXES)
    layout = arranged(name, files, left_out, "recordings")
    found: dict[int, Recording] = {}
    for place in watched(layout.paths, "sounds"):
        try:
            found[place] = _read(root / layout.paths[place], rate, index)
        except ValueError as error:
            left_out.setdefault("unreadable", []).append(f"{shown(layout.paths[place])}: {error}")
    unreadable = len(left_out.get("unreadable", []))
    digests = {place: hashlib.sha256(recording.wave.tobytes()).digest() for place, recording in found.items()}
    if len(set(digests.values())) < 2 or unreadable > len(found):
        raise UserError(
            f"{shown(name)}: expected at least 2 different sounds ({', '.join(sorted(SUFFIXES))}) in {shown(root)}, "
            f"most of them readable, found {len(set(digests.values()))}"
            + "".join(f"; {part}" for part in [left_out_notice(left_out)] if part)
        )
    splits = {split: [place for place in places if place in found] for split, places in layout.splits.items()}
    if not splits.get("test"):
        train = np.array(splits["train"])
        is_test = for_testing([digests[place] for place in train])
        splits |= {"train": train[~is_test].tolist(), "test": train[is_test].tolist()}

    def arrays(places: list[int]) -> tuple[Arrays, Sequence[bytes]]:
        rows = []
        for place in places:
            wave = trimmed(found[place].wave, rate)
            for start in range(0, max(len(wave) - length // 2, 1), length):  # the end, if it is half an example or more
                rows.append((*fitted(wave[start:], length), layout.labels.get(place, 0), digests[place]))
        *columns, keys = zip(*rows, strict=True)
        audio, own, label = map(np.array, columns)
        labels = {"label": label.astype(np.int32)} if layout.classes else {}
        return {"audio": audio} | labels | {"length": own.astype(np.int32)}, keys

    train, keys = arrays(splits["train"])
    kinds = {
        "silent": [each.silent for each in found.values()],
        "almost silent in the mix of their channels, which --data.channel left avoids": [
            each.cancels for each in found.values()
        ],
    }
    names = [shown(layout.paths[place]) for place in found]
    notes = [counted(list(compress(names, flags)), kind) for kind, flags in kinds.items() if any(flags)]
    data = Dataset(
        name=name,
        train=train,
        test=arrays(splits["test"])[0],
        validation=arrays(splits["validation"])[0] if splits.get("validation") else None,
        classes=tuple(map(shown, layout.classes)),
        notice="; ".join(filter(None, [left_out_notice(left_out), *layout.notes, *notes])) or None,
        source=f"{len(found):,} recordings in {shown(root.resolve())}, {rate} samples per second",
    )
    return data, keys


class Recording(NamedTuple):
    """A decoded sound.

    wave: int16 [T], one channel or the mean of all.
    silent: every channel is zero throughout.
    cancels: several channels sound, but their mean has less than a tenth of the amplitude of the loudest.
    """

    wave: np.ndarray
    silent: bool
    cancels: bool


def _index_of(channel: str) -> int | None:
    """Index of a channel by its name or number (from 1), None for the mean of all."""
    known = {"mix": None, "left": 0, "right": 1}
    if channel in known:
        return known[channel]
    if channel.isascii() and channel.isdigit() and 1 <= int(channel) <= 1_024:
        return int(channel) - 1
    raise UserError(f"--data.channel {channel}: expected mix, left, right or a number from 1 to 1024")


def _read(path: Path, rate: int, index: int | None) -> Recording:
    """Decode one channel of a sound, or the mean of all (None); a sound with one channel has the same left and right.

    Raises:
      ValueError: the file cannot be read as a sound, is empty, longer than `LONGEST`, or holds NaN or infinity.
      UserError: no such channel; soxr is needed and not installed.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(contents(path))) as file:  # not the header, but what can be read decides
            channels, found, pieces, energy = file.channels, file.samplerate, [], np.zeros(file.channels)
            if index is not None and index >= max(channels, 2):
                raise UserError(f"--data.channel {index + 1}: {shown(path)} has {channels} channels")
            total = 0
            while len(block := file.read(2**16, dtype="float32", always_2d=True)):
                total += len(block)
                if total * max(rate / found, 1) > LONGEST:
                    raise ValueError(f"more than {LONGEST:,} samples")
                energy += np.square(block, dtype=np.float64).sum(0)
                pieces.append(block.mean(1) if index is None else block[:, min(index, channels - 1)].copy())
    except (OSError, EOFError, zlib.error, soundfile.SoundFileError, RuntimeError) as error:
        raise ValueError(getattr(error, "strerror", None) or str(error)) from error
    if not total:
        raise ValueError("it is empty")
    if not np.isfinite(energy).all():
        raise ValueError("it holds NaN or infinity")
    wave = np.concatenate(pieces)
    mixed = np.square(wave, dtype=np.float64).sum()
    cancels = index is None and bool(mixed < 0.1**2 * energy.max())
    wave = np.round(np.clip(resampled(wave, found, rate), -1, 1) * 32_767).astype(np.int16)
    return Recording(wave, silent=not energy.any(), cancels=cancels)


def resampled(wave: np.ndarray, found: int, rate: int) -> np.ndarray:
    """[T] at another rate, of the same dtype."""
    if found == rate:
        return wave
    try:
        import soxr
    except ModuleNotFoundError:
        raise UserError(
            f"sounds of {found} samples per second: to make them {rate} needs the package soxr: {install('soxr')}"
        ) from None
    return soxr.resample(wave, found, rate)


def trimmed(wave: np.ndarray, rate: int) -> np.ndarray:
    """Without the silence before and after [T], but for a margin of 20 ms."""
    level = np.abs(wave.astype(np.float32))
    loud = np.flatnonzero(level > SILENT * level.max(initial=0))
    if not len(loud):
        return wave
    margin = round(MARGIN * rate)
    return wave[max(loud[0] - margin, 0) : loud[-1] + 1 + margin]


def fitted(wave: np.ndarray, length: int) -> tuple[np.ndarray, int]:
    """Cut to that length, or followed by silence; and how many samples are its own."""
    own = min(len(wave), length)
    return np.pad(wave[:own], (0, length - own)), own


def _labelled(
    name: str,
    train: Arrays,
    test: Arrays,
    classes: tuple[str, ...],
    other: tuple[str, tuple[str, ...]],
    joint: bool,
    *,
    source: str,
    notice: str | None,
) -> Dataset:
    """By the one label, or by pairs of it and the other."""
    entry, names = other
    if joint:
        train, test = (a | {"label": a["label"] * len(names) + a[entry]} for a in (train, test))
        classes = tuple(f"{one} {two}" for one in classes for two in names)
    return Dataset(name=name, train=train, test=test, classes=classes, source=source, notice=notice)
