"""Spectra and pitch: closed forms, and what goes there and comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import spectra
from jaxgen.metrics.audio import cents, in_tune, pitch
from jaxgen.spectra import Scale, from_log_mel, griffin_lim, istft, log_mel, stft

RATE = 8_000
T = np.arange(2_000) / RATE


def test_spectrum_of_a_frame_is_its_fourier_transform():
    x = np.random.default_rng(0).normal(size=(2, 300))
    found = stft(jnp.asarray(x), 64, 32)
    assert found.shape == (2, spectra.frames(300, 32), 33)
    window = np.sin(np.pi * np.arange(64) / 64) ** 2
    padded = np.pad(x, ((0, 0), (32, 64)))
    for frame in (0, 4, 9):
        expected = np.fft.rfft(padded[:, 32 * frame : 32 * frame + 64] * window)
        np.testing.assert_allclose(found[:, frame], expected, atol=1e-4)


@pytest.mark.parametrize("length", [256, 300, 999])
def test_sounds_come_back_from_their_spectrum(length):
    x = np.random.default_rng(0).normal(size=(3, length)).astype(np.float32)
    back = istft(stft(jnp.asarray(x), 64, 16), length, 64, 16)
    np.testing.assert_allclose(back, x, atol=1e-4)


def test_loudness_is_in_decibels_at_the_right_place():
    scale = Scale(RATE, size=256, hop=128, bins=40)
    levels = np.asarray(log_mel(jnp.asarray(np.stack([np.sin(2 * np.pi * f * T) for f in (500, 500, 2_000)])), scale))
    quiet = np.asarray(log_mel(jnp.asarray(0.1 * np.sin(2 * np.pi * 500 * T)), scale))
    assert levels.shape == (3, 16, 40)
    middle = levels[:, 5:10].mean(1)
    assert middle.max(1) == pytest.approx(1, abs=0.1)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 4_000 / 700), 42) / 2595) - 1)
    np.testing.assert_allclose(edges[1:-1][middle.argmax(1)], [500, 500, 2_000], rtol=0.07)
    peak = middle[0].argmax()
    np.testing.assert_allclose(levels[0, 5:10, peak] - quiet[5:10, peak], 20 / scale.floor, atol=1e-4)
    assert (np.asarray(log_mel(jnp.zeros(500), scale)) == 0).all()


def test_griffin_lim_finds_a_sound_of_that_spectrum():
    x = sum(np.sin(2 * np.pi * 220 * k * T) / k for k in range(1, 6)) * np.exp(-3 * T) / 3
    magnitude = jnp.abs(stft(jnp.asarray(x), 256, 64))
    find = jax.jit(griffin_lim, static_argnums=(1, 2, 3), static_argnames="iterations")

    def error(iterations):
        found = find(magnitude, len(x), 256, 64, iterations=iterations)
        return np.linalg.norm(jnp.abs(stft(found, 256, 64)) - magnitude) / np.linalg.norm(magnitude)

    assert error(32) < 0.15 < error(0)
    assert in_tune(pitch(np.asarray(find(magnitude, len(x), 256, 64, iterations=32))[None], RATE), 220, within=20)


def test_a_sound_comes_back_from_the_mel_scale_with_its_pitch_and_loudness():
    scale = Scale(RATE, size=512, hop=64, bins=80)
    hertz = np.array([150.0, 200, 300])
    x = np.stack([sum(np.cos(2 * np.pi * f * k * T) / k for k in range(1, 8)) for f in hertz]) / 6
    back = np.asarray(jax.jit(from_log_mel, static_argnums=(1, 2))(log_mel(jnp.asarray(x), scale), len(T), scale))
    np.testing.assert_allclose(back.std(1), x.std(1), rtol=0.35)
    assert in_tune(pitch(back, RATE), hertz).all()
    assert not np.asarray(from_log_mel(jnp.zeros((16, 40)), 2_000, Scale(RATE))).any()


# Pitch ----------------------------------------------------------------------------------------------------------------


def test_pitch_of_known_waves():
    hertz = np.array([65, 110, 174.6, 261.6, 440, 880])
    phase = 2 * np.pi * hertz[:, None] * T
    rich = sum(np.sin(k * phase + k) / k for k in range(1, 5))
    no_fundamental = sum(np.sin(k * phase) for k in (2, 3, 4))
    for waves in (np.sin(phase), rich, no_fundamental, (1_000 * rich).astype(np.int16), 5 + rich):
        assert (np.abs(cents(pitch(waves, RATE), hertz)) < 12).all()
    np.testing.assert_allclose(pitch(np.sin(phase), 2 * RATE, high=2_000), 2 * hertz, rtol=0.01)  # as fast again


def test_noise_and_silence_have_no_pitch():
    noise = np.random.default_rng(0).normal(size=(20, 2_000))
    assert np.isnan(pitch(noise, RATE)).all()
    assert np.isnan(pitch(np.zeros((2, 2_000)), RATE)).all()
    half = np.concatenate([np.sin(2 * np.pi * 200 * T[:1_000]), np.zeros(1_000)])[None]
    assert in_tune(pitch(half, RATE), 200).all()  # what is silent does not count


def test_cents_and_what_is_in_tune():
    np.testing.assert_allclose(cents(np.array([440, 880, 466.164]), 440), [0, 1200, 100], atol=1e-2)
    np.testing.assert_array_equal(in_tune(np.array([452, 454, 428, np.nan]), 440), [True, False, True, False])


def test_too_short_a_sound_is_refused():
    with pytest.raises(ValueError, match="takes 403"):
        pitch(np.zeros((1, 300)), RATE)
