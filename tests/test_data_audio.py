"""Sounds: the notes against a sine of their frequency, spoken digits of tiny archives, recordings of all kinds."""

import hashlib
import io
import os
import sys
import tarfile
import wave

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data import audio as audio_data
from jaxgen.data.audio import BRIGHTNESS, PITCHES, frequency, load_audio, trimmed
from jaxgen.data.catalogue import RAW_AUDIO, _sum_of_members
from jaxgen.data.decode import from_mu_law, mu_law
from jaxgen.data.prepare import find, prepare
from jaxgen.errors import UserError
from jaxgen.metrics.audio import in_tune, pitch


@pytest.fixture(scope="module")
def notes():
    return load_audio("notes")


# Mu-law ---------------------------------------------------------------------------------------------------------------


def test_mu_law_is_as_published_and_comes_back():
    to, back = jax.jit(mu_law), jax.jit(from_mu_law)
    tokens = jnp.arange(256)
    np.testing.assert_array_equal(to(back(tokens)), tokens)
    levels = jnp.array([-32_768, -1_000, -3, 0, 3, 1_000, 32_767], jnp.int16)
    x = np.array([-1.0, -1_000 / 32_768, -3 / 32_768, 0, 3 / 32_768, 1_000 / 32_768, 32_767 / 32_768])
    expected = np.floor((np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256) + 1) / 2 * 255 + 0.5)
    np.testing.assert_array_equal(to(levels), expected)
    assert back(to(levels)).dtype == jnp.int16
    # An error in proportion to what it is of, but for the quietest: half a step of 1 / 127.5 in the logarithm.
    loud = jnp.arange(-32_768, 32_768, dtype=jnp.int16)[::7]
    error = np.abs(np.asarray(back(to(loud)), float) - np.asarray(loud, float))
    bound = (np.abs(np.asarray(loud, float)) + 32_768 / 255) * (256 ** (0.5 / 127.5) - 1) + 1
    assert (error <= bound).all()


# Notes ----------------------------------------------------------------------------------------------------------------


def test_notes_are_labelled_and_always_the_same(notes):
    assert notes.train["audio"].shape == (160 * 13, 2_048)
    assert notes.test["audio"].shape == (10 * 13, 2_048)
    assert {name: str(array.dtype) for name, array in notes.test.items()} == {
        "audio": "int16",
        "label": "int32",
        "brightness": "int32",
        "length": "int32",
    }
    assert notes.classes == PITCHES
    assert (PITCHES[0], PITCHES[9], PITCHES[-1]) == ("C4", "A4", "C5")
    assert frequency("A4") == 440
    assert [frequency(name) for name in ("C4 soft", "C5")] == pytest.approx([261.626, 523.251], abs=1e-3)
    assert (np.bincount(notes.train["label"]) == 160).all()
    assert notes.train["audio"].std(1).min() > 500
    again = load_audio("notes")
    assert again.spec == notes.spec
    assert not (notes.train["audio"][0] == notes.train["audio"][13]).all()  # the same pitch, another string


def test_pitch_of_notes_is_that_of_their_label(notes):
    asked = np.array([frequency(name) for name in PITCHES])[notes.test["label"]]
    found = pitch(notes.test["audio"], 8_000)
    assert in_tune(found, asked, within=20).all()
    other = load_audio("notes", sample_rate=11_025, seconds=0.2)
    assert other.test["audio"].shape == (130, 2_205)
    assert in_tune(pitch(other.test["audio"], 11_025), asked, within=20).all()


def test_bright_notes_have_more_of_the_high_frequencies(notes):
    spectrum = np.abs(np.fft.rfft(notes.test["audio"].astype(float))) ** 2
    high = spectrum[:, 512:].sum(1) / spectrum.sum(1)  # above 2 kHz
    bright = notes.test["brightness"] == 1
    assert bright.mean() == 0.5
    assert np.median(high[bright]) > 5 * np.median(high[~bright])


def test_joint_labels_are_pairs():
    data = load_audio("notes", seconds=0.02, joint=True)
    assert data.classes[:3] == ("C4 soft", "C4 bright", "C#4 soft")
    assert len(data.classes) == len(PITCHES) * len(BRIGHTNESS)
    np.testing.assert_array_equal(data.test["label"] % 2, data.test["brightness"])


# Spoken digits --------------------------------------------------------------------------------------------------------


def wav(samples, rate=8_000, channels=1):
    file = io.BytesIO()
    with wave.open(file, "wb") as target:
        target.setnchannels(channels)
        target.setsampwidth(2)
        target.setframerate(rate)
        target.writeframes(np.asarray(samples, "<i2").tobytes())
    return file.getvalue()


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A folder with an archive of 4 x 2 x 7 tiny recordings, whose sum stands in the table; (folder, recordings)."""
    folder = tmp_path / "raw"
    folder.mkdir()
    rng, recordings = np.random.default_rng(0), {}
    with tarfile.open(folder / "free-spoken-digit-dataset-1.0.9-anything.tar.gz", "w:gz") as tar:
        for digit in range(4):
            for speaker in ("ann", "bob"):
                for index in range(7):
                    name = f"{digit}_{speaker}_{index}.wav"
                    recordings[name] = rng.integers(-9_999, 9_999, 900 + 10 * index)
                    content = wav(recordings[name])
                    info = tarfile.TarInfo(f"free-spoken-digit-dataset-1.0.9/recordings/{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    (path,) = folder.iterdir()
    total = _sum_of_members(path.read_bytes())
    raw = RAW_AUDIO["spoken_digit"]._replace(sha256={"v1.0.9.tar.gz": total}, url="http://127.0.0.1:9/")
    monkeypatch.setitem(RAW_AUDIO, "spoken_digit", raw)
    return folder, recordings


def test_digits_are_prepared_and_split_by_the_convention_of_the_data_set(archive, tmp_path):
    folder, recordings = archive
    written = prepare("spoken_digit", raw_dir=folder, data_dir=tmp_path / "tfds")
    assert written == tmp_path / "tfds" / "spoken_digit" / "1.0.9" == find("spoken_digit", tmp_path / "tfds")
    data = load_audio("spoken_digit", data_dir=tmp_path / "tfds", strict=True, seconds=0.12)
    assert data.classes == tuple("0123456789")
    assert data.notice is None
    assert len(data.train["audio"]) == 4 * 2 * 2
    assert len(data.test["audio"]) == 4 * 2 * 5
    assert data.train.keys() == {"audio", "label", "speaker"}
    assert "tensorflow" not in sys.modules
    rows = zip(*(data.test[name] for name in ("audio", "label", "speaker", "length")), strict=True)
    expected = [
        (samples, int(name[0]), ["ann", "bob"].index(name.split("_")[1]))
        for name, samples in sorted(recordings.items())
        if int(name[:-4].split("_")[2]) < 5
    ]
    for (audio, label, speaker, length), (samples, digit, who) in zip(rows, expected, strict=True):
        assert (label, speaker, length) == (digit, who, len(samples))  # 900 to 940 of 960
        np.testing.assert_array_equal(audio[:length], samples)
        assert not audio[length:].any()
    joint = load_audio("spoken_digit", data_dir=tmp_path / "tfds", strict=True, joint=True)
    assert joint.classes[:3] == ("0 ann", "0 bob", "1 ann")
    for path in written.glob("*.array_record*"):  # as TFDS prepares it unless told otherwise
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    with pytest.raises(UserError, match=r"spoken_digit in .* cannot be read \(.*array_record.* is missing\)"):
        load_audio("spoken_digit", data_dir=tmp_path / "tfds", strict=True)


def test_archives_are_known_by_what_they_hold(archive, tmp_path):
    """However they are packed; one recording that differs is another data set."""
    folder, _ = archive
    (path,) = folder.iterdir()
    content = path.read_bytes()
    plain = io.BytesIO()
    with tarfile.open(path) as tar, tarfile.open(fileobj=plain, mode="w") as other:
        for member in reversed(tar.getmembers()):
            other.addfile(member, tar.extractfile(member))
    assert hashlib.sha256(plain.getvalue()).digest() != hashlib.sha256(content).digest()
    assert _sum_of_members(plain.getvalue()) == _sum_of_members(content)
    for damaged, found in ((content[: len(content) // 2], "no archive that can be read"), (b"<html>", "no archive")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{path.name} is truncated or not the right file: .*{found}"):
            prepare("spoken_digit", raw_dir=folder, data_dir=tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_without_digits_there_are_notes_unless_forbidden(archive, tmp_path):
    data = load_audio("spoken_digit", data_dir=tmp_path / "tfds", seconds=0.02)
    assert data.name == "notes"
    assert "instead of spoken_digit: spoken_digit is neither prepared" in data.notice
    assert "\n" not in data.notice
    with pytest.raises(UserError, match=r"--data\.strict forbids training on notes"):
        load_audio("spoken_digit", data_dir=tmp_path / "tfds", strict=True)


# Recordings -----------------------------------------------------------------------------------------------------------


def tone(seconds, rate, hertz=200.0, amplitude=8_000):
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def test_recordings_are_converted_trimmed_and_cut(tmp_path):
    soundfile = pytest.importorskip("soundfile", reason="needs the extra audio")
    pytest.importorskip("soxr", reason="needs the extra audio")
    for word in ("one", "two"):
        (tmp_path / word).mkdir()
    quiet = np.zeros(1_600)
    (tmp_path / "one" / "a.wav").write_bytes(wav(np.concatenate([quiet, tone(0.2, 8_000), quiet])))
    stereo = np.stack([tone(0.2, 44_100), 0 * tone(0.2, 44_100)], axis=1)
    (tmp_path / "one" / "b.wav").write_bytes(wav(stereo, 44_100, 2))
    soundfile.write(tmp_path / "two" / "c.flac", tone(1.0, 16_000) / 32_768, 16_000)
    (tmp_path / "two" / "notes.txt").write_text("no sound")
    data = load_audio(f"audio:{tmp_path}", seconds=0.25)
    assert data.classes == ("one", "two")
    audio = np.concatenate([data.train["audio"], data.test["audio"]])
    label = np.concatenate([data.train["label"], data.test["label"]])
    assert audio.dtype == np.int16
    assert sorted(label) == [0, 0, 1, 1, 1, 1]  # a second is four examples
    assert audio.shape == (6, 2_000)
    np.testing.assert_allclose(pitch(audio, 8_000), 200, rtol=2e-3)
    for sound in audio[label == 0]:
        assert np.abs(sound[:400]).max() > 3_000  # it does not begin with the silence
        assert not sound[1_950:].any()
    loudness = np.sort(np.abs(audio).max(1))
    np.testing.assert_allclose(loudness, [4_000] + [8_000] * 5, rtol=0.1)  # half of a channel that is silent
    assert set(data.test["length"]) <= {1_760, 1_920, 2_000} | set(range(1_600, 2_001))


def test_silence_goes_but_for_a_margin():
    sound = np.concatenate([np.zeros(1_000), tone(0.1, 8_000), np.zeros(1_000)])
    assert len(trimmed(sound, 8_000)) == pytest.approx(800 + 2 * 160, abs=3)
    assert len(trimmed(np.zeros(50), 8_000)) == 50


def test_what_cannot_be_is_said(tmp_path, monkeypatch):
    for name, options, message in (
        ("nots", {}, "unknown sounds 'nots', did you mean notes"),
        (f"audio:{tmp_path}/none", {}, "there is no folder"),
        (f"audio:{tmp_path}", {}, "expected at least 2 different sounds .* found 0"),
        (f"audio:{tmp_path}", {"channel": "middle"}, "--data.channel middle: expected mix, left, right or a number"),
        (f"audio:{tmp_path}", {"channel": "0"}, "--data.channel 0: expected mix, left, right or a number from 1"),
        (f"audio:{tmp_path}", {"joint": True}, "--data.joint"),
        ("notes", {"sample_rate": 10}, "--data.sample-rate 10: expected at least 1000"),
        ("notes", {"seconds": 0.0}, "--data.seconds 0.0"),
    ):
        with pytest.raises(UserError, match=message):
            load_audio(name, **options)
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(wav(tone(0.1, 16_000, amplitude=ord(name[0])), 16_000))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "soundfile", None)
        with pytest.raises(UserError, match=r"needs the package soundfile: pip install soundfile"):
            load_audio(f"audio:{tmp_path}")
    pytest.importorskip("soundfile", reason="needs the extra audio")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "soxr", None)
        with pytest.raises(UserError, match=r"16000 samples per second.* soxr: pip install soxr"):
            load_audio(f"audio:{tmp_path}")
    (tmp_path / "b.wav").write_bytes(b"RIFF but no more")
    with pytest.raises(UserError, match=r"most of them readable, found 1; left out 1 unreadable \(b.wav: "):
        load_audio(f"audio:{tmp_path}", sample_rate=16_000)


@pytest.fixture
def recordings(tmp_path):
    """A function that writes sounds of different pitch, [T] or [T, channels], at 8 kHz; returns the data set's name."""
    pytest.importorskip("soundfile", reason="needs the extra audio")

    def write(**sounds):
        for name, sound in sounds.items():
            path = tmp_path / "sounds" / f"{name.replace('__', '/')}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wav(sound, 8_000, 1 if np.ndim(sound) == 1 else np.shape(sound)[1]))
        return f"audio:{tmp_path / 'sounds'}"

    return write


def every(data):
    """All examples, int16 [N, T], in the order of their loudness."""
    audio = np.concatenate([data.train["audio"], data.test["audio"]])
    return audio[np.argsort(np.abs(audio).max(1))]


def test_channels_that_cancel_out_are_named_and_one_can_be_chosen(recordings):
    left, right = tone(0.1, 8_000, 200), tone(0.1, 8_000, 300)
    name = recordings(
        anti=np.stack([left, -left], 1), nearly=np.stack([right, -0.9 * right], 1), stereo=np.stack([left, right], 1),
        mono=left, silence=0 * left,
    )  # fmt: skip
    data = load_audio(name, seconds=0.1)
    assert data.notice == (
        "1 silent (silence.wav); 2 almost silent in the mix of their channels, which --data.channel left avoids "
        "(anti.wav, nearly.wav)"
    )
    for channel, hertz in (("left", {200, 300}), ("1", {200, 300}), ("right", {200, 300})):
        data = load_audio(name, seconds=0.1, channel=channel)
        assert data.notice == "1 silent (silence.wav)"
        assert set(np.round(pitch(every(data)[1:], 8_000), -1)) == hertz
    stereo = recordings(stereo=np.stack([left, 0.5 * right], 1), mono=0.1 * left)
    for channel, hertz in (("left", 200), ("right", 300)):
        loudest = every(load_audio(stereo, seconds=0.1, channel=channel))[-2:]
        assert hertz in np.round(pitch(loudest, 8_000), -1)
    with pytest.raises(UserError, match=r"--data.channel 3: .*anti.wav has 2 channels"):
        load_audio(name, channel="3")


def test_sounds_whose_names_are_not_utf8(recordings, tmp_path):
    name = recordings(a=tone(0.1, 8_000, 200), b=tone(0.1, 8_000, 300))
    folder = os.fsencode(tmp_path / "sounds")
    for old, new in ((b"a.wav", b"\xe9/\xe9.wav"), (b"b.wav", b"\xe8/\xe8.wav")):
        os.makedirs(os.path.dirname(os.path.join(folder, new)))
        os.rename(os.path.join(folder, old), os.path.join(folder, new))
    data = load_audio(name, seconds=0.1)
    assert data.classes == (r"\xe8", r"\xe9")
    assert data.notice is None
    data.name.encode(), data.source.encode()


def test_folders_of_sounds_are_splits_and_classes_and_what_is_left_out_is_counted(recordings, tmp_path):
    sounds = {f"{split}__{word}__{i}": tone(0.1, 8_000, 100 + 10 * i + 5 * (split == "test"), 1_000 * (i + 1))
              for split in ("train", "test") for word in ("no", "yes") for i in range(3)}  # fmt: skip
    name = recordings(**sounds, train__stray=tone(0.1, 8_000, 99))
    (tmp_path / "sounds" / "__MACOSX").mkdir()
    (tmp_path / "sounds" / "train" / "no" / "._1.wav").write_bytes(b"resource")
    (tmp_path / "sounds" / "train" / "yes" / "pipe.wav").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "sounds" / "train" / "yes" / "pipe.wav")
    (tmp_path / "sounds" / "train" / "yes" / "zero.wav").symlink_to("/dev/zero")
    (tmp_path / "sounds" / "train" / "yes" / "text.wav").write_text("RIFF")
    data = load_audio(name, seconds=0.1)
    assert data.classes == ("no", "yes")
    assert sorted(data.train["label"]) == sorted(data.test["label"]) == [0, 0, 0, 1, 1, 1]
    for part in ("hidden or of the system (__MACOSX", "1 pipes, sockets or devices (train/yes/pipe.wav)",
                 "1 links out of the folder (train/yes/zero.wav)", "1 unreadable (train/yes/text.wav: ",
                 "1 in no folder of a class (train/stray.wav)"):  # fmt: skip
        assert part in data.notice


def test_copies_of_a_sound_are_in_one_split(recordings):
    sounds = {f"{i}_{copy}": tone(0.1, 8_000, 100 + 10 * i) for i in range(12) for copy in range(3)}
    data = load_audio(recordings(**sounds), seconds=0.1)
    train, test = ({row.tobytes() for row in part["audio"]} for part in (data.train, data.test))
    assert len(train) + len(test) == 12
    assert not train & test
    with pytest.raises(UserError, match=r"at least 2 different sounds .* found 1"):
        load_audio(recordings(**{name: tone(0.1, 8_000) for name in sounds}))


def test_headers_that_lie_cost_nothing(recordings, tmp_path, monkeypatch):
    soundfile = pytest.importorskip("soundfile", reason="needs the extra audio")
    name = recordings(a=tone(0.1, 8_000, 200), b=tone(0.1, 8_000, 300), c=tone(0.1, 8_000, 400))
    path = tmp_path / "sounds" / "a.wav"
    content = bytearray(path.read_bytes())
    content[40:44] = b"\xff\xff\xff\x7f"  # 2 GiB of samples
    path.write_bytes(content)
    content[24:28] = (1).to_bytes(4, "little")  # one sample per second: half an hour of 8 kHz
    (tmp_path / "sounds" / "b.wav").write_bytes(content)
    soundfile.write(path := tmp_path / "sounds" / "d.flac", tone(0.1, 8_000, 500) / 32_768, 8_000)
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F  # 2^36 samples, says its STREAMINFO
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    monkeypatch.setattr(audio_data, "LONGEST", 100_000)
    data = load_audio(name, seconds=0.1)
    assert data.notice.startswith("left out 2 unreadable (b.wav: more than 100,000 samples, d.flac: ")
    assert len(every(data)) >= 2
