# SPDX-License-Identifier: Apache-2.0
"""What the default checkpoint hears: sounds that are made from nothing.

Each sounding thing of `world.py` has a function here that draws all of its parameters at random, so that no training
clip sounds like another. They share a few building blocks: a harmonic source with a pitch contour, resonators
(formants, bodies, bells), shaped noise, plucked strings and events that repeat.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.fft import next_fast_len
from scipy.signal import lfilter
from world import DURATION


RATE = 16000

Random = np.random.Generator
# Centre in Hz, bandwidth in Hz, gain
Formants = Sequence[tuple[float, float, float]]
Maker = Callable[[Random, int], np.ndarray]

MAKERS: dict[str, Maker] = {}


def _makes(name: str) -> Callable[[Maker], Maker]:
    def register(maker: Maker) -> Maker:
        MAKERS[name] = maker
        return maker

    return register


# ---------------------------------------------------------------------------------------------------------------------
# Building blocks
# ---------------------------------------------------------------------------------------------------------------------
def _samples(seconds: float) -> int:
    return max(32, round(seconds * RATE))


def _log_uniform(random: Random, low: float, high: float) -> float:
    """Pitches and tempi are heard in ratios, so they are drawn in them."""
    return float(np.exp(random.uniform(np.log(low), np.log(high))))


def _contour(points: Sequence[float], n: int, times: Sequence[float] | None = None) -> np.ndarray:
    """Lines from point to point, evenly spaced unless `times` (0 to 1) says when."""
    times = np.linspace(0, 1, len(points)) if times is None else times
    return np.interp(np.linspace(0, 1, n), times, points)


def _wobble(random: Random, n: int, rate: float) -> np.ndarray:
    """Noise of about unit size that changes `rate` times a second."""
    count = max(2, int(n / RATE * rate) + 2)
    return np.interp(np.linspace(0, count - 1, n), np.arange(count), random.standard_normal(count))


def _envelope(n: int, attack: float, release: float, hold: float = 1.0) -> np.ndarray:
    """Rises in `attack` seconds, goes to `hold` by the end, and falls in the last `release` seconds."""
    rise, fall = (min(n // 2, _samples(seconds)) for seconds in (attack, release))
    envelope = np.linspace(1, hold, n)
    envelope[:rise] *= np.sin(np.linspace(0, np.pi / 2, rise)) ** 2
    envelope[n - fall :] *= np.cos(np.linspace(0, np.pi / 2, fall)) ** 2
    return envelope


def _decay(n: int, seconds: float, attack: float = 0.002) -> np.ndarray:
    """Falls to a third in so many seconds."""
    envelope = np.exp(-np.arange(n) / (seconds * RATE))
    rise = min(n, _samples(attack))
    envelope[:rise] *= np.linspace(0, 1, rise)
    return envelope


def _noise(random: Random, n: int, low: float = 20, high: float = 8000, slope: float = 0.0) -> np.ndarray:
    """Noise of unit power between two frequencies with soft edges, and so many dB for each octave."""
    size = next_fast_len(n, real=True)
    freqs = np.fft.rfftfreq(size, 1 / RATE)
    freqs[0] = freqs[1]
    gain = (freqs / 1000) ** (slope / 6.02) / np.sqrt((1 + (low / freqs) ** 6) * (1 + (freqs / high) ** 8))
    spectrum = gain * (random.standard_normal(freqs.size) + 1j * random.standard_normal(freqs.size))
    noise = np.fft.irfft(spectrum, size)[:n]
    return noise / (noise.std() + 1e-9)


def _tone(random: Random, freq: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """Harmonics of a changing pitch, without those that the rate can not hold."""
    size = 4096
    spectrum = np.zeros(size // 2 + 1, complex)
    count = min(amplitudes.size, int(0.48 * RATE / max(freq.max(), 1)))
    spectrum[1 : count + 1] = amplitudes[:count] * np.exp(1j * random.uniform(-0.6, 0.6, count))
    table = np.fft.irfft(spectrum, size)
    phase = (np.cumsum(freq) / RATE + random.random()) * size
    tone = table[phase.astype(np.int64) % size]
    return tone / (table.std() + 1e-9)


def _harmonics(tilt: float, count: int = 160) -> np.ndarray:
    """Amplitudes that fall with the number to the power of `tilt`."""
    return np.arange(1, count + 1) ** -float(tilt)


def _resonate(sound: np.ndarray, resonances: Formants) -> np.ndarray:
    """Resonators side by side: formants of a voice, the body of an instrument, or the modes of what was struck."""
    result = np.zeros(sound.size)
    for freq, width, gain in resonances:
        if gain and freq < 0.47 * RATE:
            radius, angle = np.exp(-np.pi * width / RATE), 2 * np.pi * freq / RATE
            # Unit gain at the centre, none at 0 Hz
            scale = gain * (1 - radius) / np.sqrt(2)
            result += lfilter([scale * 2, 0, -scale * 2 * radius], [1, -2 * radius * np.cos(angle), radius**2], sound)
    return result


def _strike(freqs: np.ndarray, decays: np.ndarray, gains: np.ndarray, n: int) -> np.ndarray:
    """Modes that all start at once and fall to a third in their seconds."""
    result = np.zeros(n)
    impulse = np.zeros(n)
    impulse[0] = 1
    for freq, decay, gain in zip(freqs, decays, gains):
        if freq < 0.47 * RATE:
            end = min(n, _samples(decay * 7))
            radius, angle = np.exp(-1 / (decay * RATE)), 2 * np.pi * freq / RATE
            poles = [1, -2 * radius * np.cos(angle), radius**2]
            result[:end] += gain * np.sin(angle) * lfilter([1], poles, impulse[:end])
    return result


def _pluck(random: Random, freq: float, n: int, brightness: float, sustain: float) -> np.ndarray:
    """A string after Karplus and Strong, a period at a time."""
    period = int(RATE / freq)
    loop = random.uniform(-1, 1, period)
    for _ in range(int(3 * (1 - brightness)) + 1):
        loop = 0.5 * (loop + np.roll(loop, 1))
    # Where it is plucked some harmonics are missing
    loop = loop - random.uniform(0.3, 0.95) * np.roll(loop, int(period * random.uniform(0.1, 0.4)))
    loss = np.exp(-1 / (freq * sustain))
    share = 0.5 - 0.35 * brightness
    count = int(n / period * 1.1) + 2
    periods = np.empty((count, period))
    for index in range(count):
        periods[index] = loop
        loop = loss * ((1 - share) * loop + share * np.roll(loop, 1))
    flat = periods.ravel()
    # The loop has whole samples and a delay of `share`: read at the speed that gives the wanted pitch
    return np.interp(np.arange(n) * freq * (period + share) / RATE, np.arange(flat.size), flat)


def _voice(
    random: Random,
    freq: np.ndarray,
    vowels: Sequence[Formants],
    tilt: float = 1.0,
    breath: float = 0.1,
    rough: float = 0.0,
    jitter: float = 0.01,
    vowel_times: Sequence[float] | None = None,
) -> np.ndarray:
    """A throat and a mouth that goes from vowel to vowel.

    Args:
        random: Source of all choices.
        freq: Pitch in Hz for each sample.
        vowels: Formants that follow each other.
        tilt: How fast harmonics fall.
        breath: Noise in relation to the tone.
        rough: How much the loudness shakes within hundredths of a second.
        jitter: How much the pitch shakes.
        vowel_times: When which vowel is reached, 0 to 1, else evenly.
    """
    n = freq.size
    # Callers give the most there is: many throats are nearly pure
    breath, rough, jitter = (
        breath * random.uniform(0.1, 0.8),
        rough * random.uniform(0, 0.8),
        jitter * random.uniform(0.1, 0.8),
    )
    tilt = tilt + random.uniform(-0.2, 0.7)
    source = _tone(random, freq * (1 + jitter * _wobble(random, n, 60)), _harmonics(tilt))
    if breath:
        # Noise of the throat comes in the rhythm of its pulses
        source = source + breath * _noise(random, n, 100, 7500, -3) * (1 + 0.5 * np.tanh(source))
    if rough:
        if random.random() < 0.5:
            # Every second pulse of the throat is weaker
            source = source * (1 + 0.8 * min(rough, 1) * np.sin(np.pi * np.cumsum(freq) / RATE))
        else:
            source = source * np.clip(1 + rough * _wobble(random, n, random.uniform(30, 110)), 0, 3)
    if len(vowels) == 1:
        return _resonate(source, vowels[0]) + 0.03 * source
    result = 0.03 * source
    times = np.linspace(0, 1, len(vowels)) if vowel_times is None else np.asarray(vowel_times)
    for index, formants in enumerate(vowels):
        weight = _contour(np.eye(len(vowels))[index], n, times)
        result += weight * _resonate(source, formants)
    return result


def _formants(
    random: Random, *freqs: float, scale: float = 1.0, fall: float = 0.6
) -> list[tuple[float, float, float]]:
    """Formants near those frequencies, each weaker than the one before."""
    return [
        (freq * scale * random.uniform(0.88, 1.12), freq * scale * random.uniform(0.1, 0.22) + 40, fall**index)
        for index, freq in enumerate(freqs)
    ]


def _add(sound: np.ndarray, event: np.ndarray, start: int) -> None:
    """Adds what of an event lies within a sound."""
    first, last = max(start, 0), min(start + event.size, sound.size)
    if first < last:
        sound[first:last] += event[first - start : last - start]


def _join(parts: Sequence[np.ndarray], gaps: Sequence[float]) -> np.ndarray:
    """Parts one after the other, each with so many seconds of silence after it (or, below 0, of overlap)."""
    starts = np.cumsum([0, *(part.size + int(gap * RATE) for part, gap in zip(parts, gaps))])
    joined = np.zeros(max(start + part.size for part, start in zip(parts, starts)))
    for part, start in zip(parts, starts):
        _add(joined, part, max(0, start))
    return joined


def _repeat(
    random: Random, n: int, make: Callable[[], np.ndarray], pause: tuple[float, float], same: float = 0.3
) -> np.ndarray:
    """Events one after the other with pauses, from somewhere in the first one or soon before it.

    Args:
        random: Source of all choices.
        n: Samples.
        make: Makes an event, a new one each time.
        pause: Least and most seconds between two.
        same: How often all events of a clip are one and the same, as in a recording that is played again and again.
    """
    sound = np.zeros(n)
    event = make()
    is_same = random.random() < same
    start = -int(random.uniform(0, 0.6) * event.size) if random.random() < 0.4 else _samples(random.uniform(0, 0.25))
    fixed = random.uniform(*pause)
    while start < n:
        loudness = 1 if is_same else random.uniform(0.6, 1)
        _add(sound, loudness * event, start)
        start += event.size + _samples(fixed if is_same else random.uniform(*pause))
        if not is_same:
            event = make()
    return sound


def _beats(random: Random, n: int, rate: float, swing: float = 0.0) -> Iterator[int]:
    """Where the beats of a rhythm lie: so many in a second, each off by at most the share `swing`."""
    step = RATE / rate
    position = random.uniform(0, min(step, 0.5 * RATE))
    while position < n:
        yield max(0, int(position + random.uniform(-swing, swing) * step))
        position += step


def _unit(sound: np.ndarray) -> np.ndarray:
    """With a peak of 1."""
    return sound / (np.abs(sound).max() + 1e-9)


def _room(random: Random, sound: np.ndarray) -> np.ndarray:
    """What room, microphone and file format do: some reverb, some tilt, lost lows and highs."""
    n = sound.size
    if random.random() < 0.3:
        # Recordings are made even: what is faint becomes louder
        power = lfilter([0.002], [1, -0.998], sound**2)
        sound = sound * (power + 1e-4 * power.max() + 1e-12) ** -random.uniform(0.1, 0.3)
    length = _samples(_log_uniform(random, 0.05, 0.5))
    size = next_fast_len(n + length, real=True)
    freqs = np.fft.rfftfreq(size, 1 / RATE)
    spectrum = np.fft.rfft(sound, size)
    if random.random() < 0.6:
        tail = random.standard_normal(length) * _decay(length, length / RATE / 5)
        wet = random.uniform(0.03, 0.35)
        spectrum = spectrum * (1 + wet * np.fft.rfft(tail / np.sqrt((tail**2).sum()), size))
    octaves = np.log2(np.maximum(freqs, 30) / 1000)
    knots = random.normal(0, 3.5, 9)
    decibels = random.normal(0, 1.2) * octaves + np.interp(octaves, np.linspace(-5, 3, 9), knots)
    gain = 10 ** (decibels / 20)
    if random.random() < 0.5:
        gain = gain / np.sqrt(1 + (_log_uniform(random, 20, 180) / np.maximum(freqs, 1)) ** 4)
    if random.random() < 0.4:
        gain = gain / np.sqrt(1 + (freqs / _log_uniform(random, 2500, 7500)) ** 16)
    return np.fft.irfft(spectrum * gain, size)[:n]


def _notes(random: Random, low: float, high: float) -> Iterator[float]:
    """Pitches of a melody in a scale, mostly in small steps."""
    scale = random.choice(np.array([[0, 2, 4, 5, 7, 9, 11], [0, 2, 3, 5, 7, 8, 10], [0, 2, 4, 7, 9, 12, 14]]))
    root = _log_uniform(random, low, max(low * 1.01, high / 2))
    degree = int(random.integers(0, 8))
    while True:
        octave, step = divmod(degree, 7)
        freq = root * 2 ** (octave + scale[step] / 12)
        yield float(np.clip(freq, low, high))
        degree = int(np.clip(degree + random.integers(-3, 4), 0, 11))


# ---------------------------------------------------------------------------------------------------------------------
# Animals
# ---------------------------------------------------------------------------------------------------------------------
@_makes("dog")
def _dog(random: Random, n: int) -> np.ndarray:
    # 0 is a small dog, 1 a big one
    big = random.random()
    base = _log_uniform(random, 0.7, 1.4) * 750 * (0.28**big)
    scale = 1.45 - 0.6 * big
    tilt, breath, rough = random.uniform(0.4, 1.1), random.uniform(0.2, 1.0), random.uniform(0, 0.6)

    def bark() -> np.ndarray:
        size = _samples(random.uniform(0.09, 0.16 + 0.16 * big))
        peak = base * random.uniform(0.9, 1.15)
        freq = peak * _contour(
            (random.uniform(0.5, 0.75), 1, 0.95, random.uniform(0.45, 0.7)), size, (0, 0.25, 0.5, 1)
        )
        vowels = (_formants(random, 450, 1100, 2400, scale=scale), _formants(random, 850, 1500, 2700, scale=scale))
        sound = _voice(random, freq, (*vowels, vowels[0]), tilt, breath, rough, 0.02)
        return _unit(sound * _envelope(size, 0.012, 0.6 * size / RATE))

    def go() -> np.ndarray:
        count = int(random.integers(1, 5))
        gap = random.uniform(0.05, 0.3)
        parts = [bark() * random.uniform(0.6, 1) for _ in range(count)]
        return _join(parts, [gap * random.uniform(0.7, 1.4) for _ in parts])

    return _repeat(random, n, go, (0.1, 0.6))


@_makes("cat")
def _cat(random: Random, n: int) -> np.ndarray:
    base, scale = _log_uniform(random, 380, 800), random.uniform(0.85, 1.2)
    tilt = random.uniform(0.5, 1.3)

    def meow() -> np.ndarray:
        size = _samples(random.uniform(0.4, 1.3))
        ends = random.uniform(0.65, 0.95), random.uniform(0.55, 0.9)
        peak_at = random.uniform(0.2, 0.6)
        freq = base * random.uniform(0.9, 1.15) * _contour((ends[0], 1, 0.97, ends[1]), size, (0, peak_at, 0.7, 1))
        freq = freq * (1 + 0.01 * np.sin(2 * np.pi * random.uniform(4, 8) * np.arange(size) / RATE))
        vowels = (
            [(300 * scale, 120, 0.5), (1000 * scale, 300, 0.05)],
            _formants(random, 700, 2300, 3300, scale=scale, fall=0.8),
            _formants(random, 1200, 2000, 3400, scale=scale, fall=0.8),
            _formants(random, 750, 1300, 2900, scale=scale, fall=0.5),
        )
        times = (0, random.uniform(0.1, 0.25), random.uniform(0.4, 0.65), 1)
        sound = _voice(random, freq, vowels, tilt, random.uniform(0.02, 0.2), 0.1, 0.006, times)
        return _unit(sound * _envelope(size, random.uniform(0.05, 0.15), random.uniform(0.1, 0.35)))

    return _repeat(random, n, meow, (0.1, 0.6))


@_makes("cow")
def _cow(random: Random, n: int) -> np.ndarray:
    base, scale = _log_uniform(random, 75, 300), random.uniform(0.85, 1.2)
    tilt, breath = random.uniform(0.4, 1.0), random.uniform(0.02, 0.2)

    def moo() -> np.ndarray:
        size = _samples(random.uniform(0.7, 2.6))
        freq = base * _contour(
            (random.uniform(0.75, 0.95), 1, random.uniform(0.95, 1.25), random.uniform(0.7, 0.95)), size
        )
        vowels = (
            [(230 * scale, 90, 1), (750 * scale, 150, 0.15), (2200 * scale, 300, 0.03)],
            _formants(random, 480, 950, 2300, scale=scale),
            _formants(random, 620, 1150, 2500, scale=scale),
            _formants(random, 450, 850, 2300, scale=scale, fall=0.4),
        )
        times = (0, random.uniform(0.2, 0.4), 0.75, 1)
        sound = _voice(random, freq, vowels, tilt, breath, random.uniform(0, 0.5), 0.008, times)
        return _unit(sound * _envelope(size, random.uniform(0.1, 0.3), random.uniform(0.15, 0.4)))

    return _repeat(random, n, moo, (0.1, 0.6))


def _snort(random: Random, seconds: float, flutter: float) -> np.ndarray:
    """Air through lips or a nose that flap so many times a second."""
    size = _samples(seconds)
    rate = flutter * (1 + 0.15 * _wobble(random, size, 8))
    flaps = 0.5 + 0.5 * np.sin(2 * np.pi * np.cumsum(rate) / RATE)
    sound = _resonate(_noise(random, size, 100, 6000, -3), _formants(random, 500, 1500, 3000)) * (0.15 + flaps**3)
    return _unit(sound * _envelope(size, 0.03, 0.4 * seconds))


@_makes("horse")
def _horse(random: Random, n: int) -> np.ndarray:
    top, scale = _log_uniform(random, 650, 1500), random.uniform(0.85, 1.2)

    def neigh() -> np.ndarray:
        size = _samples(random.uniform(1.0, 2.3))
        low = random.uniform(0.3, 0.6)
        freq = top * _contour((random.uniform(0.5, 0.8), 1, 0.9, (0.9 + low) / 2, low), size, (0, 0.12, 0.35, 0.7, 1))
        depth = _contour((0.1, 0.4, 1), size) * random.uniform(0.6, 1.1)
        rate = random.uniform(8, 14) * _contour((1, random.uniform(0.75, 1.1)), size)
        tremble = np.sin(2 * np.pi * np.cumsum(rate) / RATE)
        freq = freq * (1 + 0.09 * depth * tremble)
        vowels = (
            _formants(random, 900, 2000, 3200, scale=scale, fall=0.8),
            _formants(random, 800, 1700, 2900, scale=scale, fall=0.7),
        )
        breath = random.uniform(0.1, 0.6)
        sound = _voice(random, freq, vowels, random.uniform(0.3, 0.9), breath, random.uniform(0.1, 0.5), 0.015)
        sound = (
            sound * np.clip(1 + 0.7 * depth * tremble, 0.05, 2) * _envelope(size, 0.06, 0.3, random.uniform(0.3, 0.9))
        )
        if random.random() < 0.35:
            snort = random.uniform(0.2, 0.6) * _snort(random, random.uniform(0.3, 0.6), random.uniform(15, 28))
            return _join((_unit(sound), snort), (random.uniform(-0.1, 0.1), 0))
        return _unit(sound)

    return _repeat(random, n, neigh, (0.05, 0.5))


@_makes("sheep")
def _sheep(random: Random, n: int) -> np.ndarray:
    # Lambs are higher
    base = _log_uniform(random, 160, 420) if random.random() < 0.7 else _log_uniform(random, 350, 650)
    scale, tremble_rate = random.uniform(0.85, 1.35), random.uniform(6, 14)
    tilt = random.uniform(0.0, 0.6)

    def bleat() -> np.ndarray:
        size = _samples(random.uniform(0.4, 1.3))
        rate = tremble_rate * (1 + 0.06 * _wobble(random, size, 6))
        tremble = np.sin(2 * np.pi * np.cumsum(rate) / RATE)
        freq = base * _contour((random.uniform(0.85, 1), 1.05, 1, random.uniform(0.75, 0.95)), size)
        freq = freq * (1 + random.uniform(0.02, 0.07) * tremble)
        vowels = (
            [(350 * scale, 120, 0.8), (1200 * scale, 300, 0.2)],
            _formants(random, 750, 1700, 2800, scale=scale, fall=0.8),
            _formants(random, 700, 1500, 2700, scale=scale, fall=0.7),
        )
        breath, rough = random.uniform(0.1, 0.9), random.uniform(0.1, 0.7)
        sound = _voice(random, freq, vowels, tilt, breath, rough, 0.015, (0, random.uniform(0.05, 0.2), 1))
        sound = sound * (1 + random.uniform(0.2, 0.85) * tremble)
        return _unit(sound * _envelope(size, 0.05, random.uniform(0.1, 0.3), random.uniform(0.5, 1)))

    return _repeat(random, n, bleat, (0.1, 0.6))


@_makes("pig")
def _pig(random: Random, n: int) -> np.ndarray:
    base, scale = _log_uniform(random, 45, 130), random.uniform(0.8, 1.3)
    squeals = random.random() < 0.3
    wet = random.uniform(0.5, 1.6)

    def grunt() -> np.ndarray:
        if squeals and random.random() < 0.5:
            size = _samples(random.uniform(0.25, 0.9))
            freq = random.uniform(600, 1500) * _contour((0.6, 1, random.uniform(0.9, 1.2), 0.6), size)
            sound = _voice(random, freq, [_formants(random, 1200, 2500, 3700, fall=0.9)], 0.4, 0.6, 0.6, 0.04)
            return _unit(sound * _envelope(size, 0.05, 0.15))
        if random.random() < 0.25:
            return _snort(random, random.uniform(0.2, 0.5), random.uniform(22, 50))
        size = _samples(random.uniform(0.09, 0.4))
        freq = base * random.uniform(0.8, 1.25) * _contour((0.8, 1.2, 0.8), size)
        vowels = [_formants(random, 350, 900, 2200, 3200, scale=scale, fall=0.7)]
        sound = _voice(random, freq, vowels, random.uniform(0.1, 0.7), wet, random.uniform(0.4, 1), 0.08)
        return _unit(sound * _envelope(size, 0.02, 0.5 * size / RATE))

    return _repeat(random, n, grunt, (0.02, 0.4), same=0.15)


@_makes("duck")
def _duck(random: Random, n: int) -> np.ndarray:
    base, scale = _log_uniform(random, 150, 420), random.uniform(0.7, 1.2)
    tilt, breath, length = random.uniform(0, 0.5), random.uniform(0.05, 0.5), random.uniform(0.09, 0.24)
    nose = _formants(random, 1100, 2200, 3200, scale=scale, fall=0.9)

    def quack(loudness: float) -> np.ndarray:
        size = _samples(length * random.uniform(0.8, 1.25))
        freq = base * (0.8 + 0.2 * loudness) * _contour((0.85, 1.05, 1, 0.75), size)
        mouth = [(freq_ * 0.8, width, gain) for freq_, width, gain in nose]
        sound = _voice(random, freq, (mouth, nose, mouth), tilt, breath, random.uniform(0, 0.4), 0.02)
        return loudness * _unit(sound * _envelope(size, 0.015, 0.4 * size / RATE))

    def call() -> np.ndarray:
        count = int(random.integers(1, 8))
        gap = random.uniform(0.03, 0.2)
        fade = random.uniform(0.8, 1)
        parts = [quack(fade**index) for index in range(count)]
        return _join(parts, [gap * random.uniform(0.85, 1.2) for _ in parts])

    return _repeat(random, n, call, (0.1, 0.5))


@_makes("rooster")
def _rooster(random: Random, n: int) -> np.ndarray:
    base, scale = _log_uniform(random, 450, 800), random.uniform(0.85, 1.2)
    tilt, breath, rough = random.uniform(0.3, 1.0), random.uniform(0.05, 0.3), random.uniform(0.05, 0.4)

    def crow() -> np.ndarray:
        lengths = [random.uniform(*span) for span in ((0.1, 0.25), (0.08, 0.2), (0.2, 0.5), (0.45, 1.1))]
        shapes = (
            (0.75, 0.95, 0.85),
            (0.95, 1.15, 1.05),
            (1.1, 1.35, 1.25),
            (1.3, 1.4, 1.15, random.uniform(0.6, 0.85)),
        )
        stretch = random.uniform(0.8, 1.15)
        parts = []
        for length, shape in zip(lengths, shapes):
            size = _samples(length * stretch)
            vowels = (
                _formants(random, 900, 2100, 3300, scale=scale, fall=0.8),
                _formants(random, 1200, 2500, 3500, scale=scale, fall=0.8),
                _formants(random, 800, 1800, 3000, scale=scale, fall=0.6),
            )
            freq = base * random.uniform(0.95, 1.05) * _contour(shape, size)
            sound = _voice(random, freq, vowels, tilt, breath, rough, 0.015)
            parts.append(random.uniform(0.6, 1) * _unit(sound * _envelope(size, 0.025, 0.3 * size / RATE)))
        return _join(parts, [random.uniform(-0.01, 0.08) for _ in parts])

    return _repeat(random, n, crow, (0.05, 0.5), same=0.5)


@_makes("bird")
def _bird(random: Random, n: int) -> np.ndarray:
    centre = _log_uniform(random, 1800, 5500)
    style = random.choice(5, p=(0.3, 0.2, 0.3, 0.1, 0.1))
    purity = np.array([1, random.uniform(0.02, 0.3), random.uniform(0, 0.15)])

    def syllable(length: float, wide: float = 0.45) -> np.ndarray:
        size = _samples(length)
        points = centre * np.exp(random.uniform(-wide, wide, int(random.integers(2, 5))))
        freq = np.clip(_contour(points, size), 900, 7600)
        return random.uniform(0.5, 1) * _tone(random, freq, purity) * _envelope(size, 0.3 * length, 0.4 * length)

    def song() -> np.ndarray:
        if style == 0:  # single chirps
            parts = [syllable(random.uniform(0.05, 0.18)) for _ in range(random.integers(1, 5))]
            return _join(parts, [random.uniform(0.03, 0.2) for _ in parts])
        if style == 1:  # a trill of one syllable
            part = syllable(random.uniform(0.025, 0.07))
            count = int(random.integers(6, 22))
            return _join([part * random.uniform(0.8, 1) for _ in range(count)], [random.uniform(0.008, 0.04)] * count)
        if style == 2:  # a song of whistles and short trills
            parts = []
            for _ in range(random.integers(3, 9)):
                part = syllable(_log_uniform(random, 0.04, 0.3), 0.35)
                parts += [part] * int(random.choice((1, 1, 2, 3)))
            return _join(parts, [random.uniform(0.005, 0.08) for _ in parts])
        if style == 3:  # a long canary's roll
            size = _samples(random.uniform(0.4, 1.2))
            rate = random.uniform(15, 35)
            shake = np.sin(2 * np.pi * rate * np.arange(size) / RATE)
            freq = centre * _contour((1, random.uniform(0.8, 1.25)), size) * (1 + random.uniform(0.02, 0.12) * shake)
            tone = _tone(random, np.clip(freq, 900, 7600), purity) * (0.6 + 0.4 * shake)
            return tone * _envelope(size, 0.05, 0.1)
        # The squawk of a parrot or a gull
        size = _samples(random.uniform(0.15, 0.5))
        freq = random.uniform(900, 1900) * _contour((0.7, 1.1, 1, 0.7), size)
        sound = _voice(random, freq, [_formants(random, 2000, 3300, 4500, fall=0.9)], 0.2, 0.4, 0.3, 0.03)
        return _unit(sound * _envelope(size, 0.02, 0.1))

    return _repeat(random, n, song, (0.04, 0.5))


@_makes("frog")
def _frog(random: Random, n: int) -> np.ndarray:
    def animal() -> np.ndarray:
        pitch, rate = _log_uniform(random, 280, 2200), _log_uniform(random, 22, 75)
        body = [(pitch, pitch * 0.12, 1), (pitch * random.uniform(1.6, 2.6), pitch * 0.25, random.uniform(0.2, 0.9))]
        count, length = int(random.choice((1, 1, 2))), random.uniform(0.12, 0.5)
        upward = random.uniform(0.8, 1.7)

        def croak() -> np.ndarray:
            parts = []
            for _ in range(count):
                size = _samples(length / count * random.uniform(0.85, 1.15))
                freq = rate * _contour((1, upward), size)
                pulses = _tone(random, freq * (1 + 0.02 * _wobble(random, size, 40)), _harmonics(0.05))
                sound = _resonate(pulses + 0.1 * _noise(random, size, 200, 4000), body)
                parts.append(_unit(sound * _envelope(size, 0.25 * length / count, 0.3 * length / count)))
            return _join(parts, [random.uniform(0.01, 0.08)] * count)

        return _repeat(random, n, croak, (0.08, 0.6), same=0.5)

    others = [random.uniform(0.2, 0.7) * animal() for _ in range(random.choice((0, 0, 1, 2)))]
    return sum(others, animal())


@_makes("bee")
def _bee(random: Random, n: int) -> np.ndarray:
    sound = np.zeros(n)
    for _ in range(random.choice((1, 1, 2, 4))):
        freq = _log_uniform(random, 130, 300) * np.exp(
            random.uniform(0.01, 0.1) * _wobble(random, n, random.uniform(1, 5)) + 0.01 * _wobble(random, n, 40)
        )
        body = [*_formants(random, 400, 1100, 2600, fall=0.7)]
        source = _tone(random, freq, _harmonics(random.uniform(0.3, 1.0)))
        source = source * (1 + random.uniform(0.05, 0.3) * _wobble(random, n, 50))
        source = source + random.uniform(0.05, 0.4) * _noise(random, n, 300, 6000, -3)
        near = np.exp(random.uniform(0.1, 0.7) * _wobble(random, n, random.uniform(0.7, 3)))
        sound += near * (_resonate(source, body) + random.uniform(0.1, 0.5) * source)
    return sound


@_makes("lion")
def _lion(random: Random, n: int) -> np.ndarray:
    base, scale = _log_uniform(random, 38, 130), random.uniform(0.8, 1.25)
    breath, tilt = random.uniform(0.4, 1.6), random.uniform(0.3, 0.9)

    def roar() -> np.ndarray:
        size = _samples(random.uniform(0.7, 2.4))
        freq = base * _contour((0.75, 1.15, 1.05, 0.65), size)
        vowels = (
            _formants(random, 250, 650, 1800, scale=scale, fall=0.5),
            _formants(random, 480, 950, 2200, scale=scale, fall=0.6),
            _formants(random, 280, 650, 1700, scale=scale, fall=0.4),
        )
        sound = _voice(random, freq, vowels, tilt, breath, random.uniform(0.5, 1.1), 0.08)
        growl = 1 + random.uniform(0.2, 0.8) * np.sin(
            2 * np.pi * np.cumsum(random.uniform(18, 40) * (1 + 0.1 * _wobble(random, size, 10))) / RATE
        )
        return _unit(sound * growl * _envelope(size, random.uniform(0.1, 0.5), random.uniform(0.2, 0.6)))

    return _repeat(random, n, roar, (0.05, 0.4))


@_makes("elephant")
def _elephant(random: Random, n: int) -> np.ndarray:
    base, scale = _log_uniform(random, 300, 700), random.uniform(0.85, 1.2)

    def trumpet() -> np.ndarray:
        size = _samples(random.uniform(0.5, 1.9))
        shape = (random.uniform(0.5, 0.8), 1, random.uniform(0.95, 1.25), random.uniform(0.6, 0.95))
        freq = base * _contour(shape, size, (0, 0.2, 0.6, 1)) * (1 + 0.02 * _wobble(random, size, 12))
        vowels = (
            _formants(random, 700, 1500, 2700, scale=scale, fall=0.9),
            _formants(random, 1000, 2000, 3200, scale=scale, fall=0.9),
        )
        sound = _voice(
            random, freq, vowels, random.uniform(0, 0.6), random.uniform(0.1, 0.5), random.uniform(0.2, 0.9), 0.02
        )
        sound = np.tanh(random.uniform(0.3, 1.2) * sound / (sound.std() + 1e-9))
        return _unit(sound * _envelope(size, random.uniform(0.03, 0.12), random.uniform(0.1, 0.4)))

    return _repeat(random, n, trumpet, (0.05, 0.5))


@_makes("owl")
def _owl(random: Random, n: int) -> np.ndarray:
    base = _log_uniform(random, 240, 620)
    amplitudes = np.array([1, random.uniform(0.02, 0.4), random.uniform(0.01, 0.2), random.uniform(0, 0.08)])
    lengths = random.uniform(0.12, 0.5, int(random.integers(1, 6)))
    lengths[-1] *= random.uniform(1, 2)
    gaps = random.uniform(0.06, 0.35, lengths.size)
    quaver = random.uniform(0.1, 0.5) if random.random() < 0.3 else 0
    fall = random.uniform(0.85, 1)

    def hoot() -> np.ndarray:
        parts = []
        for length in lengths * random.uniform(0.9, 1.1):
            size = _samples(length)
            freq = base * random.uniform(0.98, 1.02) * _contour((0.88, 1, 0.99, fall), size, (0, 0.25, 0.6, 1))
            tone = _tone(random, freq * (1 + 0.004 * _wobble(random, size, 30)), amplitudes)
            tone = tone * (1 + quaver * np.sin(2 * np.pi * random.uniform(10, 18) * np.arange(size) / RATE))
            tone += random.uniform(0.01, 0.12) * _noise(random, size, 200, 1500, -6)
            parts.append(random.uniform(0.6, 1) * tone * _envelope(size, 0.3 * length, 0.4 * length))
        return _join(parts, gaps)

    return _repeat(random, n, hoot, (0.1, 0.6), same=0.5)


@_makes("monkey")
def _monkey(random: Random, n: int) -> np.ndarray:
    base, scale = _log_uniform(random, 260, 520), random.uniform(0.9, 1.3)
    excitement = random.random()

    def call() -> np.ndarray:
        parts, gaps = [], []
        count = int(random.integers(3, 9))
        speed = random.uniform(0.8, 1.3)
        for index in range(count):
            progress = index / count
            excited = random.random() < excitement * (0.3 + progress)
            size = _samples(random.uniform(0.08, 0.2) * speed * (1.3 if excited else 1))
            if excited:  # a scream
                freq = base * random.uniform(2, 4) * _contour((0.7, 1.1, 1, 0.75), size)
                vowels = [_formants(random, 1200, 2000, 3400, scale=scale, fall=0.9)]
                sound = _voice(random, freq, vowels, 0.4, random.uniform(0.2, 0.8), 0.5, 0.04)
            else:  # oo, and oh
                freq = base * (1 + 0.6 * progress) * _contour((0.8, 1.15, 0.9), size)
                vowels = [_formants(random, 450 + 300 * progress, 950, 2600, scale=scale, fall=0.35)]
                sound = _voice(random, freq, vowels, 1.1, random.uniform(0.05, 0.3), 0.1, 0.015)
            parts.append((0.5 + 0.5 * progress) * _unit(sound * _envelope(size, 0.03, 0.06)))
            gaps.append(random.uniform(0.02, 0.1) * speed)
            if random.random() < 0.4:  # the breath in between
                size = _samples(random.uniform(0.06, 0.14) * speed)
                pant = _resonate(_noise(random, size, 200, 5000, -3), _formants(random, 700, 1600, 2900, scale=scale))
                parts.append(random.uniform(0.1, 0.4) * _unit(pant * _envelope(size, 0.04, 0.04)))
                gaps.append(random.uniform(0.01, 0.06))
        return _join(parts, gaps)

    return _repeat(random, n, call, (0.05, 0.4))


@_makes("snake")
def _snake(random: Random, n: int) -> np.ndarray:
    low, high = random.uniform(1500, 4200), random.uniform(6500, 8000)
    rattles = random.random() < 0.35
    rattle_rate = random.uniform(20, 60)

    def hiss() -> np.ndarray:
        size = _samples(random.uniform(0.5, 2.2))
        sound = _noise(random, size, low, high, random.uniform(-2, 4))
        sound = sound * np.exp(0.15 * _wobble(random, size, 10))
        if rattles:
            phase = np.cumsum(rattle_rate * (1 + 0.05 * _wobble(random, size, 6))) / RATE
            sound = sound * (0.1 + np.exp(-6 * (phase % 1)))
        return _unit(sound * _envelope(size, random.uniform(0.03, 0.4), random.uniform(0.1, 0.6)))

    return _repeat(random, n, hiss, (0.02, 0.5))


@_makes("cricket")
def _cricket(random: Random, n: int) -> np.ndarray:
    def animal() -> np.ndarray:
        carrier, rate = _log_uniform(random, 2900, 6200), _log_uniform(random, 14, 60)
        raspy = random.uniform(0, 1) if random.random() < 0.5 else 0
        is_trill = random.random() < 0.25
        count = int(random.integers(15, 50) if is_trill else random.integers(2, 8))
        duty = random.uniform(0.4, 0.75)

        def chirp() -> np.ndarray:
            size = _samples(count / rate)
            phase = np.arange(size) / RATE * rate
            pulses = np.sin(np.pi * np.clip((phase % 1) / duty, 0, 1)) ** 2
            freq = carrier * (1 - 0.02 * (phase % 1)) * np.ones(size)
            tone = (1 - 0.7 * raspy) * _tone(random, freq, np.array([1, 0.05]))
            if raspy:
                tone = tone + raspy * _noise(random, size, carrier * 0.85, min(7900, carrier * 1.3))
            return tone * pulses * _contour((0.5, 1, 1), size)

        return _repeat(random, n, chirp, (0.05, 0.15) if is_trill else (0.06, 0.55), same=0.7)

    others = [random.uniform(0.1, 0.6) * animal() for _ in range(random.choice((0, 0, 1, 3)))]
    return sum(others, animal())


# ---------------------------------------------------------------------------------------------------------------------
# Instruments
# ---------------------------------------------------------------------------------------------------------------------
def _bell_modes(random: Random, freq: float, decay: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies, decays and gains of a cast bell, or of a cup of metal."""
    if random.random() < 0.5:
        ratios = np.array([0.5, 1, 1.2, 1.5, 2, 2.5, 2.67, 3, 4, 5.33, 6.7])
    else:
        ratios = np.array([1, 2.76, 5.4, 8.93, 1.005, 2.74, 3.6, 4.3])
    ratios = ratios * random.uniform(0.98, 1.02, ratios.size)
    freqs = freq * ratios
    decays = decay * ratios ** -random.uniform(0.4, 1) * random.uniform(0.7, 1.3, ratios.size)
    return freqs, np.maximum(decays, 0.02), random.uniform(0.2, 1, ratios.size) * ratios ** -random.uniform(0, 0.8)


@_makes("bell")
def _bell(random: Random, n: int) -> np.ndarray:
    freq = _log_uniform(random, 220, 2600)
    modes = _bell_modes(random, freq, _log_uniform(random, 0.35, 2.5) * (500 / freq) ** 0.3)
    stroke = _strike(*modes, min(n, _samples(3)))
    click = random.uniform(0, 0.5) * _noise(random, 200, 1000, 7800) * _decay(200, 0.003)
    stroke[:200] += click * np.abs(stroke).max()
    sound = np.zeros(n + RATE)
    # Some strokes were before the start
    rate = _log_uniform(random, 0.8, 5)
    for beat in _beats(random, n + RATE, rate, random.choice((0, 0, 0.1))):
        _add(sound, random.uniform(0.6, 1) * stroke, beat)
    return sound[RATE:]


def _drum_hit(random: Random, kind: str) -> Maker:
    """A drum of a kind, tuned once; what it returns hits it once."""
    pitch = {"kick": (45, 80), "tom": (75, 240), "hand": (160, 520), "snare": (160, 300), "timpani": (65, 160)}
    base = _log_uniform(random, *pitch.get(kind, (200, 400)))
    decay = {"kick": 0.12, "tom": 0.2, "hand": 0.08, "snare": 0.09, "timpani": 0.6}.get(kind, 0.1)
    decay *= random.uniform(0.6, 1.6)
    ratios = np.array([1, 1.59, 2.14, 2.3, 2.65, 2.92])
    bend, wires = random.uniform(0.1, 0.9), random.uniform(0.5, 1.5)
    bright, length = random.uniform(3000, 6500), _log_uniform(random, 0.03, 0.3)

    def hit(random: Random, n: int) -> np.ndarray:
        if kind == "cymbal":
            return 0.35 * _unit(_noise(random, n, bright, 7900, 2) * _decay(n, length, 0.001))
        # The skin is tighter at the first moment
        time = np.arange(n) / RATE
        phase = 2 * np.pi * base * (time - bend * 0.02 * np.exp(-time / 0.02))
        weights = ratios ** (-2.0 if kind in ("kick", "timpani") else -1.2) * random.uniform(0.5, 1, ratios.size)
        skin = sum(w * np.sin(r * phase) * np.exp(-time * r / decay) for r, w in zip(ratios, weights))
        skin = skin / (np.abs(skin).max() + 1e-9)
        skin[:400] += (
            random.uniform(0.1, 0.6)
            * _unit(_noise(random, 400, 500, 6000, -3) * _decay(400, 0.004, 0.0005))[: skin[:400].size]
        )
        if kind == "snare":
            skin = 0.7 * skin + wires * _unit(_noise(random, n, 1000, 7500) * _decay(n, decay * 1.3, 0.001))
        return _unit(skin)

    return hit


@_makes("drum")
def _drum(random: Random, n: int) -> np.ndarray:
    style = random.choice(4, p=(0.35, 0.2, 0.3, 0.15))
    sound = np.zeros(n)
    if style == 0:  # a kit plays a beat
        kit = {kind: _drum_hit(random, kind) for kind in ("kick", "snare", "cymbal", "tom")}
        hits = {kind: hit(random, _samples(0.45)) for kind, hit in kit.items()}
        pattern = {
            "kick": random.random(8) < (0.95, 0.1, 0.2, 0.3, 0.6, 0.2, 0.3, 0.1),
            "snare": random.random(8) < (0.05, 0.05, 0.9, 0.1, 0.05, 0.1, 0.9, 0.2),
            "cymbal": random.random(8) < (0.9, random.random(), 0.9, 0.5, 0.9, 0.5, 0.9, 0.5),
            "tom": random.random(8) < random.choice((0, 0.2)),
        }
        loudness = {kind: random.uniform(0.5, 1) for kind in kit}
        for index, beat in enumerate(_beats(random, n, random.uniform(3, 8), 0.02)):
            for kind, hit in hits.items():
                if pattern[kind][index % 8]:
                    _add(sound, loudness[kind] * random.uniform(0.7, 1) * hit, beat)
        return sound
    if style == 1:  # a roll
        hit = _drum_hit(random, str(random.choice(("snare", "snare", "tom", "timpani"))))
        hits = [hit(random, _samples(0.3)) for _ in range(4)]
        swell = np.exp(random.uniform(0.1, 0.6) * _wobble(random, n, 1.5))
        for index, beat in enumerate(_beats(random, n, random.uniform(9, 26), 0.1)):
            _add(sound, swell[min(beat, n - 1)] * random.uniform(0.5, 1) * hits[index % 4], beat)
        return sound
    # A few drums of one kind in a rhythm, or slow single hits
    kind = str(random.choice(("tom", "hand", "hand", "snare", "timpani", "kick")))
    hits = [_drum_hit(random, kind)(random, _samples(0.7)) for _ in range(random.integers(1, 4))]
    density = 1 if style == 3 else random.uniform(0.5, 1)
    for beat in _beats(random, n, random.uniform(1.2, 2.5) if style == 3 else random.uniform(3.5, 9), 0.03):
        if random.random() < density:
            _add(sound, random.uniform(0.4, 1) * hits[random.integers(len(hits))], beat)
    return sound


@_makes("guitar")
def _guitar(random: Random, n: int) -> np.ndarray:
    brightness, sustain = random.uniform(0.15, 0.9), _log_uniform(random, 0.25, 2.5)
    style = random.choice(3, p=(0.35, 0.35, 0.3))
    root = _log_uniform(random, 82, 220)
    sound = np.zeros(n)
    if style == 0:  # strummed chords
        chords = [(0, 7, 12, 16, 19, 24), (0, 7, 12, 15, 19), (0, 5, 12, 17, 21), (-2, 5, 10, 14, 17)]
        chord = chords[random.integers(len(chords))]
        strings = [_pluck(random, root * 2 ** (note / 12), _samples(1.2), brightness, sustain) for note in chord]
        rate = random.uniform(0.9, 4)
        for beat in _beats(random, n, rate, 0.02):
            stroke = strings if random.random() < 0.7 else strings[::-1]
            step = random.uniform(0.004, 0.03) * RATE
            loudness = random.uniform(0.5, 1)
            for index, string in enumerate(stroke):
                _add(sound, loudness * string, beat + int(index * step))
    else:  # a melody, or a broken chord
        broken = random.choice(np.array([[0, 4, 7, 12, 16], [0, 3, 7, 12, 15], [0, 7, 12, 16, 19]]))
        melody = _notes(random, root, root * 4)
        known: dict[float, np.ndarray] = {}
        for beat in _beats(random, n, random.uniform(1.5, 7), 0.02):
            freq = next(melody) if style == 1 else root * 2 ** (float(random.choice(broken)) / 12)
            if freq not in known:
                known[freq] = _pluck(random, freq, _samples(1.3), brightness, sustain)
            _add(sound, random.uniform(0.5, 1) * known[freq], beat)
    if random.random() < 0.25:  # electric, through a valve
        return _resonate(
            np.tanh(_log_uniform(random, 1, 12) * _unit(sound)), _formants(random, 300, 1000, 2400, fall=0.9)
        )
    return sound + _resonate(sound, [(100, 40, 2), (205, 50, 1.5), (400, 90, 0.8)])


def _piano_note(random: Random, freq: float, n: int, hard: float, damping: float) -> np.ndarray:
    count = int(min(18, 6500 / freq))
    number = np.arange(1, count + 1)
    stiff = 0.0002 * (freq / 200) ** 1.3
    freqs = number * freq * np.sqrt(1 + stiff * number**2)
    gains = number ** -(2.2 - 1.3 * hard) * np.abs(np.sin(np.pi * number / 7.6)) * random.uniform(0.6, 1.3, count)
    decays = damping * (250 / freq) ** 0.6 / (1 + 0.18 * number)
    # Two strings a little apart make the beating of a real piano
    sound = _strike(freqs, decays, gains, n) + 0.4 * _strike(freqs[:5] * 1.0012, 2 * decays[:5], gains[:5], n)
    hammer = min(n, 640)
    sound[:hammer] += 0.1 * hard * gains.max() * _noise(random, hammer, 100, 3000, -3) * _decay(hammer, 0.008)
    sound[:48] *= np.linspace(0, 1, 48)
    return _unit(sound)


@_makes("piano")
def _piano(random: Random, n: int) -> np.ndarray:
    hard, damping = random.uniform(0.1, 1), random.uniform(0.4, 1.6)
    melody = _notes(random, _log_uniform(random, 80, 420), _log_uniform(random, 430, 1600))
    known: dict[float, np.ndarray] = {}
    plays_chords, rate = random.random() < 0.5, random.uniform(1.2, 7)
    length = _samples(random.uniform(0.5, 1.5))
    release = _envelope(length, 0.001, 0.15)
    sound = np.zeros(n)
    for index, beat in enumerate(_beats(random, n, rate, 0.02)):
        freq = next(melody)
        chord = [freq]
        if plays_chords and index % 2 == 0:
            chord += [freq / 2, freq / 2 * 2 ** (random.choice((3, 4, 7)) / 12)][: int(random.integers(1, 3))]
        for note in chord:
            if note not in known:
                known[note] = _piano_note(random, note, length, hard, damping) * release
            _add(sound, random.uniform(0.5, 1) * known[note], beat)
    return sound


def _legato(
    random: Random, n: int, low: float, high: float, lengths: tuple[float, float], slide: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The pitch of a melody for each sample, and for how long (in samples) its note has sounded by then."""
    freq, age = np.empty(n), np.empty(n)
    melody, start, before = _notes(random, low, high), 0, None
    typical = _log_uniform(random, *lengths)
    while start < n:
        size = min(n - start, _samples(typical * random.choice((0.5, 1, 1, 2))))
        note = next(melody)
        glide = np.exp(-np.arange(size) / (random.uniform(*slide) * RATE))
        freq[start : start + size] = note * ((before or note) / note) ** glide
        age[start : start + size] = np.arange(size)
        start, before = start + size, note
    return freq, age


@_makes("trumpet")
def _trumpet(random: Random, n: int) -> np.ndarray:
    freq, age = _legato(
        random, n, _log_uniform(random, 170, 400), _log_uniform(random, 500, 1000), (0.12, 1.2), (0.004, 0.02)
    )
    time = age / RATE
    # Each note starts a little low, and swells
    attack = random.uniform(0.02, 0.07)
    loudness = (1 - np.exp(-time / attack)) * np.exp(-time * random.uniform(0, 0.8))
    loudness = loudness * np.clip(1 + 0.08 * _wobble(random, n, 6), 0.5, 1.5)
    vibrato = (
        random.choice((0, 0.004, 0.012))
        * np.clip(time / 0.3 - 0.5, 0, 1)
        * np.sin(2 * np.pi * random.uniform(4.5, 6.5) * time)
    )
    freq = freq * (1 + vibrato - 0.03 * np.exp(-time / (attack / 2)) + 0.002 * _wobble(random, n, 30))
    state = random.bit_generator.state
    dull = _tone(random, freq, np.exp(-np.arange(1, 40) / 2.5))
    # The same phases, so that the two do not cancel each other
    random.bit_generator.state = state
    number = np.arange(1, 40)
    bright = _tone(random, freq, np.minimum(1, number / 3) * np.exp(-number / random.uniform(4, 11)))
    share = np.clip(loudness, 0, 1) ** 2 * random.uniform(0.6, 1)
    sound = loudness * ((1 - share) * dull + share * bright)
    sound = sound + 0.02 * loudness * _noise(random, n, 500, 6000)
    formants = [(1200 * random.uniform(0.85, 1.15), 600, 1), (2500 * random.uniform(0.85, 1.15), 900, 0.5)]
    if random.random() < 0.15:  # with a mute
        return _resonate(sound, [(1600, 300, 1), (3000, 500, 0.8)]) + 0.1 * sound
    return sound + random.uniform(0.3, 1.5) * _resonate(sound, formants)


@_makes("violin")
def _violin(random: Random, n: int) -> np.ndarray:
    freq, age = _legato(
        random, n, _log_uniform(random, 196, 500), _log_uniform(random, 600, 1500), (0.15, 1.6), (0.01, 0.06)
    )
    time = age / RATE
    rate = random.uniform(4.8, 7) * (1 + 0.05 * _wobble(random, n, 3))
    depth = random.uniform(0.002, 0.014) * np.clip(0.2 + time / 0.3, 0, 1)
    freq = freq * (1 + depth * np.sin(2 * np.pi * np.cumsum(rate) / RATE) + 0.002 * _wobble(random, n, 40))
    bow = np.exp(0.2 * _wobble(random, n, 3)) * (0.45 + 0.55 * (1 - np.exp(-time / random.uniform(0.03, 0.12))))
    source = _tone(random, freq, _harmonics(random.uniform(0.6, 1.3)))
    if random.random() < 0.25:  # a second string
        source = source + 0.7 * _tone(random, freq * random.choice((2 / 3, 3 / 4, 4 / 5)), _harmonics(1))
    source = bow * (source + random.uniform(0.02, 0.2) * _noise(random, n, 800, 7500))
    body = [
        (freq_ * random.uniform(0.93, 1.07), width, gain)
        for freq_, width, gain in (
            (280, 40, 1),
            (460, 50, 1),
            (560, 60, 1),
            (1000, 200, 0.7),
            (2700, 900, 1.3),
            (4200, 900, 0.5),
        )
    ]
    # Wood has many narrow modes, over which vibrato makes each harmonic flicker
    modes = [(f, f * random.uniform(0.02, 0.05), random.uniform(0.5, 2)) for f in np.exp(random.uniform(5.6, 8.5, 10))]
    return _resonate(source, body + modes) + random.uniform(0.1, 0.4) * source


# ---------------------------------------------------------------------------------------------------------------------
# Machines and tools
# ---------------------------------------------------------------------------------------------------------------------
def _horn(random: Random, freqs: Sequence[float], n: int, tilt: float, air: float) -> np.ndarray:
    """Pipes or plates that sound together."""
    scoop = 1 - 0.06 * np.exp(-np.arange(n) / (random.uniform(0.02, 0.08) * RATE))
    sound = air * _noise(random, n, 500, 6000, -2)
    for freq in freqs:
        shaking = scoop * (1 + 0.003 * _wobble(random, n, 20))
        sound = sound + random.uniform(0.6, 1) * _tone(random, freq * shaking, _harmonics(tilt))
    return _unit(sound * _envelope(n, random.uniform(0.03, 0.12), random.uniform(0.05, 0.2)))


@_makes("fire truck")
def _fire_truck(random: Random, n: int) -> np.ndarray:
    style = random.choice(4, p=(0.35, 0.2, 0.25, 0.2))
    time = np.arange(n) / RATE
    low = _log_uniform(random, 350, 700)
    if style == 0:  # electronic: a slow wail or a fast yelp
        rate = _log_uniform(random, 0.15, 4)
        wave = (time * rate + random.random()) % 1
        up = random.uniform(0.3, 0.7)
        freq = low * random.uniform(1.8, 2.8) ** np.where(wave < up, wave / up, (1 - wave) / (1 - up))
        sound = _tone(
            random, freq, _harmonics(random.uniform(0.5, 1.2)) * np.where(np.arange(160) % 2, random.random(), 1)
        )
    elif style in (1, 2):  # two tones, as in Europe
        rate = _log_uniform(random, 0.7, 2.6)
        low *= random.uniform(0.8, 1.2)
        freq = np.where((time * rate + random.random()) % 1 < 0.5, low, low * random.choice((4 / 3, 1.25, 1.19, 1.5)))
        freq = lfilter([0.02], [1, -0.98], freq - low) + low
        sound = _tone(random, freq, _harmonics(random.uniform(0.3, 1.1)))
        sound = sound + random.choice((0, 0.7)) * _tone(random, freq * 1.26, _harmonics(0.8))
    else:  # a rotor that winds up and runs down
        rate = random.uniform(0.08, 0.3)
        wave = 0.5 - 0.5 * np.cos(2 * np.pi * (time * rate + random.random()))
        freq = low * (0.5 + random.uniform(0.8, 1.3) * wave)
        sound = _tone(random, freq, _harmonics(random.uniform(0.3, 0.8)))
        # Many have a second row of holes
        sound = sound + random.choice((0, 0.8)) * _tone(
            random, freq * random.choice((1.2, 1.25, 1.5)), _harmonics(0.6)
        )
        sound = (0.4 + 0.6 * wave) * sound
    sound = sound + 0.5 * _resonate(sound, _formants(random, 900, 1800, 2900, fall=0.8))
    if random.random() < 0.3:
        base = random.uniform(180, 400)
        size = _samples(random.uniform(0.3, 1))
        horn = _horn(random, (base, base * random.uniform(1.15, 1.3)), size, 0.2, 0.1)
        _add(sound, random.uniform(1, 2.5) * horn, int(random.uniform(0, 0.8) * n))
    if random.random() < 0.5:
        sound = sound + random.uniform(0.05, 0.5) * _noise(random, n, 30, 700, -5)
    # The truck comes nearer or goes
    return sound * _contour(np.exp(random.normal(0, 0.3, 3)), n)


@_makes("train")
def _train(random: Random, n: int) -> np.ndarray:
    sound = np.zeros(n)
    steam, wheels, horn = random.random(3) < (0.4, 0.35, 0.6)
    if not (steam or wheels or horn):
        steam = True
    if steam:  # chuff, chuff
        rate = _log_uniform(random, 1.5, 9)
        phase = np.cumsum(rate * _contour((1, random.uniform(0.75, 1.3)), n)) / RATE + random.random()
        puff = np.exp(-(phase % 1) * random.uniform(2.5, 6)) * np.clip((phase % 1) * 25, 0, 1)
        accents = random.uniform(0.5, 1, 4)[phase.astype(int) % 4]
        noise = _noise(random, n, random.uniform(60, 300), random.uniform(2500, 7500), -random.uniform(2, 5))
        sound += _unit(noise * (puff * accents + random.uniform(0.02, 0.15)))
    if wheels:  # the joints of the rails, and rolling
        roll = _noise(random, n, 40, random.uniform(1000, 5000), -random.uniform(2, 5))
        sound += random.uniform(0.1, 0.35) * roll / 3 * np.exp(0.2 * _wobble(random, n, 4))
        clack = _strike(random.uniform(150, 2500, 6), random.uniform(0.01, 0.05, 6), random.uniform(0.3, 1, 6), 2000)
        clack = _unit(clack + 0.3 * np.abs(clack).max() * _noise(random, 2000, 300, 5000) * _decay(2000, 0.015))
        between = random.uniform(0.1, 0.22)
        for beat in _beats(random, n, random.uniform(0.8, 2.8), 0.02):
            _add(sound, random.uniform(0.5, 0.9) * clack, beat)
            _add(sound, random.uniform(0.4, 0.9) * clack, beat + int(between * RATE))
    if horn:
        is_whistle = steam or random.random() < 0.3
        base = _log_uniform(random, 300, 800) if is_whistle else _log_uniform(random, 170, 420)
        ratios = ((1, 1.2, 1.5), (1, 1.26, 1.5, 1.68), (1, 1.33, 1.68), (1, 1.19, 1.41, 1.78), (1, 1.25))[
            random.integers(5)
        ]
        tilt, air = (random.uniform(1, 2), random.uniform(0.1, 1.0)) if is_whistle else (random.uniform(0.3, 1.4), 0.1)

        def blow() -> np.ndarray:
            size = _samples(_log_uniform(random, 0.3, 2.5))
            return _horn(random, [base * ratio for ratio in ratios], size, tilt, air)

        sound = random.uniform(0.4, 1) * sound + _repeat(random, n, blow, (0.1, 0.5))
    return sound


@_makes("helicopter")
def _helicopter(random: Random, n: int) -> np.ndarray:
    rate = _log_uniform(random, 8, 26) * (1 + 0.01 * _wobble(random, n, 2))
    phase = np.cumsum(rate) / RATE + random.random()
    sharp = random.uniform(2, 9)
    chop = np.exp(-sharp * (phase % 1)) * np.clip((phase % 1) * 12, 0, 1)
    # The blades are not quite alike
    chop = chop * random.uniform(0.75, 1, 4)[phase.astype(int) % random.choice((2, 4))]
    air = _noise(random, n, random.uniform(30, 200), _log_uniform(random, 400, 5000), -random.uniform(2, 8))
    thump = _resonate(chop - chop.mean(), [(random.uniform(60, 180), 60, 3), (random.uniform(200, 420), 120, 1.5)])
    sound = air * (chop + random.uniform(0.03, 0.3)) + random.uniform(0.3, 3) * thump
    if random.random() < 0.5:  # turbine and gears
        whine = _log_uniform(random, 400, 3500)
        sound = sound + random.uniform(0.02, 0.15) * _tone(random, np.full(n, whine), _harmonics(1))
    return sound * _contour(np.exp(random.normal(0, 0.25, 3)), n)


@_makes("motorcycle")
def _motorcycle(random: Random, n: int) -> np.ndarray:
    base = _log_uniform(random, 14, 38)
    count = int(random.integers(3, 8))
    revs = np.exp(
        np.interp(
            np.arange(n), np.sort(random.uniform(0, n, count)), random.uniform(0, random.uniform(0.1, 1.7), count)
        )
    )
    revs = revs * (1 + 0.015 * _wobble(random, n, 20))
    # A cycle of two strokes of one to four cylinders that do not fire evenly
    number = np.arange(1, 301)
    fires = np.cumsum(random.uniform(0.6, 1.4, int(random.choice((1, 2, 2, 4)))))
    fires = fires / fires[-1]
    amplitudes = np.abs(np.exp(2j * np.pi * np.outer(number, fires)) @ random.uniform(0.7, 1, fires.size))
    amplitudes = amplitudes * (number + 2.0) ** -random.uniform(0.3, 0.9)
    cycle = _tone(random, base * revs, amplitudes)
    fire_phase = np.cumsum(base * revs) / RATE * fires.size
    blast = _noise(random, n, 60, 6000, -3) * np.exp(-4 * (fire_phase % 1))
    source = cycle + random.uniform(0.2, 1.2) * blast
    exhaust = _formants(random, 110, 260, 550, 1200, 2600, fall=random.uniform(0.6, 0.95))
    sound = np.tanh(random.uniform(0.5, 2) * _resonate(source, exhaust) / 0.7)
    return sound * (0.5 + 0.5 * revs / revs.max())


def _click(random: Random, low: float, high: float, decay: float, modes: int = 5) -> np.ndarray:
    """A knock of small parts: some modes and a little noise."""
    size = _samples(decay * 6 + 0.01)
    freqs = np.exp(random.uniform(np.log(low), np.log(high), modes))
    sound = _strike(freqs, decay * random.uniform(0.4, 1.3, modes), random.uniform(0.3, 1, modes), size)
    noise = _noise(random, size, low, min(7900, 1.5 * high)) * _decay(size, decay * 0.4, 0.0003)
    return _unit(_unit(sound) + random.uniform(0.1, 0.7) * _unit(noise))


def _beeps(
    random: Random, freqs: Sequence[float], lengths: Sequence[float], gaps: Sequence[float], tilt: float
) -> np.ndarray:
    parts = []
    for freq, length in zip(freqs, lengths):
        size = _samples(length)
        parts.append(_tone(random, np.full(size, freq), _harmonics(tilt, 6)) * _envelope(size, 0.004, 0.006))
    return _join(parts, gaps)


@_makes("clock")
def _clock(random: Random, n: int) -> np.ndarray:
    style = random.choice(3, p=(0.72, 0.18, 0.1))
    if style == 1:  # an alarm beeps
        freq, count = _log_uniform(random, 1400, 3800), int(random.choice((2, 3, 4, 4)))
        length, gap, tilt = random.uniform(0.04, 0.12), random.uniform(0.03, 0.1), random.uniform(0.8, 2.5)
        beeps = _beeps(random, [freq] * count, [length] * count, [gap] * count, tilt)
        return _repeat(random, n, lambda: beeps, (0.2, 0.6), same=1)
    if style == 2:  # an alarm rings without a pause
        return _ringing(random, n, _log_uniform(random, 1400, 3800), random.uniform(11, 18), 0)
    sound = np.zeros(n)
    low = _log_uniform(random, 400, 2200)
    decay = _log_uniform(random, 0.003, 0.02)
    tick = _click(random, low, min(7500, low * 4), decay)
    tock = _click(random, low * random.uniform(0.7, 0.95), min(7000, low * 3.5), decay * random.uniform(0.8, 1.5))
    case = [(random.uniform(150, 900), random.uniform(40, 120), random.uniform(0, 2))]
    for index, beat in enumerate(_beats(random, n, random.choice((1, 2, 2, 2.5, 4, 5)) * random.uniform(0.95, 1.05))):
        _add(sound, tock * 0.8 if index % 2 else tick, beat)
        # The anchor falls twice
        _add(sound, 0.2 * tick, beat + 400)
    return sound + _resonate(sound, case)


def _ringing(random: Random, n: int, freq: float, rate: float, ratio: float) -> np.ndarray:
    """A clapper between two cups of metal, the second so many times higher (0: there is but one)."""
    cups = []
    for base in (freq, freq * ratio) if ratio else (freq,):
        freqs = base * np.array([1, 1.006, 2.1, 2.8, 3.4, 4.9]) * random.uniform(0.97, 1.03, 6)
        cups.append(_strike(freqs, random.uniform(0.06, 0.4, 6), random.uniform(0.2, 1, 6), _samples(0.6)))
    sound = np.zeros(n)
    for index, beat in enumerate(_beats(random, n, rate, 0.03)):
        _add(sound, random.uniform(0.7, 1) * cups[index % len(cups)], beat)
    return sound


@_makes("telephone")
def _telephone(random: Random, n: int) -> np.ndarray:
    length = random.uniform(0.4, 1.6)
    if random.random() < 0.5:  # bells
        freq, rate, ratio = _log_uniform(random, 700, 2300), random.uniform(18, 30), random.uniform(1.1, 1.35)
        ring = _ringing(random, _samples(length), freq, rate, ratio) * _envelope(_samples(length), 0.003, 0.12)
    else:  # a trill of two tones, or of three
        freq, rate = _log_uniform(random, 450, 1900), random.uniform(10, 28)
        tones = (
            freq
            * np.array((1, random.choice((1.15, 1.25, 1.33, 1.5)), random.uniform(1, 1.7)))[: random.choice((2, 2, 3))]
        )
        size = _samples(length)
        which = (np.arange(size) / RATE * rate).astype(int) % tones.size
        ring = _tone(random, tones[which], _harmonics(random.uniform(0.5, 2), 10)) * _envelope(size, 0.01, 0.02)
    double = random.random() < 0.3
    if double:
        ring = _join((ring[: _samples(0.45)], ring[: _samples(0.45)]), (random.uniform(0.1, 0.25), 0))
    return _repeat(random, n, lambda: ring, (0.15, 0.8), same=1)


@_makes("camera")
def _camera(random: Random, n: int) -> np.ndarray:
    low = _log_uniform(random, 500, 1800)
    click = _click(random, low, 7000, _log_uniform(random, 0.003, 0.015), 7)
    clack = _click(random, low * 0.8, 6000, _log_uniform(random, 0.004, 0.025), 7)
    gap = _log_uniform(random, 0.02, 0.22)
    winds = random.random() < 0.45
    pitch, wind = _log_uniform(random, 90, 500), _samples(random.uniform(0.2, 0.9))

    def shot() -> np.ndarray:
        slide = _noise(random, _samples(gap + 0.05), 1500, 7500) * _envelope(_samples(gap + 0.05), 0.01, 0.02)
        shutter = _join((click, random.uniform(0.5, 1) * clack), (gap - click.size / RATE, 0))
        _add(shutter, random.uniform(0.01, 0.08) * slide, 0)
        if not winds:
            return shutter
        freq = pitch * _contour((0.6, 1, 1, 0.9), wind, (0, 0.15, 0.8, 1)) * (1 + 0.01 * _wobble(random, wind, 30))
        motor = _tone(random, freq, _harmonics(0.4)) + random.uniform(0.5, 2) * _noise(random, wind, 800, 7000)
        motor = _resonate(motor, _formants(random, 1200, 2600, 4200, fall=0.9)) * _envelope(wind, 0.03, 0.05)
        return _join((shutter, random.uniform(0.1, 0.4) * _unit(motor)), (random.uniform(-0.02, 0.05), 0))

    is_burst = random.random() < 0.2
    return _repeat(random, n, shot, (0.03, 0.1) if is_burst else (0.15, 0.9), same=0.4)


@_makes("hammer")
def _hammer(random: Random, n: int) -> np.ndarray:
    style = random.choice(3)
    size = _samples(0.5)
    if style == 0:  # wood
        freqs = _log_uniform(random, 150, 500) * np.array([1, 1.7, 2.4, 3.3, 4.6])
        blow = _strike(freqs, random.uniform(0.008, 0.04, 5), random.uniform(0.3, 1, 5), size)
    elif style == 1:  # an anvil, a pipe or a plate
        freqs = (
            _log_uniform(random, 700, 2200)
            * np.array([1, 1.47, 2.09, 2.56, 3.1, 4.2, 5.1])
            * random.uniform(0.95, 1.05, 7)
        )
        blow = _strike(
            freqs, _log_uniform(random, 0.03, 0.3) * random.uniform(0.4, 1.2, 7), random.uniform(0.2, 1, 7), size
        )
    else:  # a nail in wood
        freqs = np.array([random.uniform(150, 400), random.uniform(400, 900), *random.uniform(2000, 6000, 4)])
        blow = _strike(freqs, np.array([0.03, 0.02, *random.uniform(0.01, 0.07, 4)]), random.uniform(0.3, 1, 6), size)
    contact = _noise(random, size, 150, random.uniform(3000, 7500), -2) * _decay(
        size, random.uniform(0.004, 0.02), 0.0005
    )
    blow = _unit(_unit(blow) + random.uniform(0.3, 1.2) * _unit(contact))
    sound = np.zeros(n)
    bounce = random.uniform(0.05, 0.12) if random.random() < 0.25 else 0
    for beat in _beats(random, n, _log_uniform(random, 1.1, 5), 0.06):
        loudness = random.uniform(0.6, 1)
        _add(sound, loudness * blow, beat)
        if bounce:
            _add(sound, 0.3 * loudness * blow, beat + int(bounce * RATE))
    return sound


# ---------------------------------------------------------------------------------------------------------------------
# Weather and people
# ---------------------------------------------------------------------------------------------------------------------
def _grains(random: Random, n: int, rate: float, make: Callable[[], np.ndarray], kinds: int = 6) -> np.ndarray:
    """Very many short events at random times and of random loudness: each kind is made once, and laid all over."""
    size = next_fast_len(n + 2000, real=True)
    spectrum = 0
    for _ in range(kinds):
        hits = np.zeros(n)
        count = random.poisson(rate * n / RATE / kinds)
        np.add.at(hits, random.integers(0, n, count), random.exponential(1, count))
        spectrum = spectrum + np.fft.rfft(hits, size) * np.fft.rfft(make()[:2000], size)
    return np.fft.irfft(spectrum, size)[:n]


def _rainfall(random: Random, n: int) -> np.ndarray:
    low, high = _log_uniform(random, 80, 1200), random.uniform(4500, 8000)
    steady = _noise(random, n, low, high, random.uniform(-3.5, 1)) * np.exp(0.06 * _wobble(random, n, 5))

    def drop() -> np.ndarray:
        pitch = _log_uniform(random, 700, 6000)
        return _click(random, pitch * 0.8, min(7600, pitch * 1.4), _log_uniform(random, 0.001, 0.006), 2)

    drops = _grains(random, n, _log_uniform(random, 15, 500), drop)
    return _unit(steady) + random.uniform(0.1, 2) * _unit(drops)


@_makes("rain")
def _rain(random: Random, n: int) -> np.ndarray:
    return _rainfall(random, n)


@_makes("thunderstorm")
def _thunderstorm(random: Random, n: int) -> np.ndarray:
    rumble = _noise(random, n, 22, random.uniform(90, 350), -random.uniform(3, 7))
    rolls = np.exp(random.uniform(0.4, 0.9) * _wobble(random, n, random.uniform(3, 9)))
    sound = random.uniform(0.1, 0.5) * _unit(rumble * rolls)

    def clap() -> np.ndarray:
        size = _samples(random.uniform(0.9, 2.4))
        crack = np.zeros(size)
        if random.random() < 0.7:
            for _ in range(random.integers(1, 7)):
                part = _noise(random, 4000, 60, random.uniform(1500, 7000), -3) * _decay(
                    4000, random.uniform(0.02, 0.1), 0.001
                )
                _add(crack, random.uniform(0.2, 1) * part, int(random.exponential(0.12) * RATE))
        body = _noise(random, size, 25, random.uniform(150, 900), -5)
        body = body * _decay(size, random.uniform(0.3, 0.9), 0.02)
        body = body * np.exp(0.6 * _wobble(random, size, random.uniform(6, 16)))
        return (_unit(body) + random.uniform(0.2, 1) * _unit(crack)) * _envelope(size, 0.002, 0.3)

    sound += _repeat(random, n, clap, (0.05, 0.5))
    if random.random() < 0.5:
        sound += random.uniform(0.03, 0.2) * _unit(_rainfall(random, n))
    return sound


@_makes("applause")
def _applause(random: Random, n: int) -> np.ndarray:
    dull = random.uniform(0.7, 1.4)

    def clap() -> np.ndarray:
        size = 1200
        hollow = _log_uniform(random, 700, 2600) * dull
        burst = _noise(random, size, 300, random.uniform(4000, 7800), -2) * _decay(
            size, _log_uniform(random, 0.003, 0.012), 0.0005
        )
        return _unit(0.4 * burst + 2 * _resonate(burst, [(hollow, hollow * 0.35, 1)]))

    if random.random() < 0.5:  # an audience
        sound = _grains(random, n, _log_uniform(random, 25, 350), clap, 10)
        return sound * np.exp(0.1 * _wobble(random, n, 3))
    sound = np.zeros(n)
    rate = _log_uniform(random, 2, 5.5)
    for _ in range(random.choice((1, 1, 2, 4))):
        claps = [clap() for _ in range(3)]
        loudness = random.uniform(0.4, 1)
        for index, beat in enumerate(_beats(random, n, rate * random.uniform(0.93, 1.07), 0.04)):
            _add(sound, loudness * random.uniform(0.7, 1) * claps[index % 3], beat)
    return sound


# ---------------------------------------------------------------------------------------------------------------------
# Sound tracks
# ---------------------------------------------------------------------------------------------------------------------
def synthesise(name: str, random: Random, duration: float = 2.0) -> np.ndarray:
    """The sound of a thing, another one each time.

    Args:
        name: One of `SOUNDS`.
        random: Source of all choices.
        duration: Seconds. Any two of them have the sound.

    Returns:
        `(samples,)` at `RATE`, float32, with a peak of 0.3 to 0.9.
    """
    n = round(duration * RATE)
    sound = _room(random, MAKERS[name](random, n))
    return (sound * random.uniform(0.3, 0.9) / (np.abs(sound).max() + 1e-9)).astype(np.float32)


def background(random: Random, duration: float) -> np.ndarray:
    """What is called silence: none at all, faint noise or hum, of -80 to -35 dB of full scale."""
    n = round(duration * RATE)
    kind = random.choice(5)
    if kind == 0:
        return np.zeros(n, np.float32)
    if kind == 4:
        noise = _tone(random, np.full(n, float(random.choice((50, 60)))), _harmonics(random.uniform(1, 2.5), 20))
    else:
        noise = _noise(random, n, 20, 8000, (0, 0, -3, -6)[kind])
    return (noise / (noise.std() + 1e-9) * 10 ** (random.uniform(-80, -35) / 20)).astype(np.float32)


def soundtrack(sounds: Sequence[str], random: Random, duration: float = DURATION) -> np.ndarray:
    """The sound of a clip: one thing throughout, two in turn, or what is called silence.

    Args:
        sounds: At most two of `SOUNDS`.
        random: Source of all choices.
        duration: Seconds.

    Returns:
        `(samples,)` at `RATE`, float32, between -1 and 1.
    """
    if not sounds:
        return background(random, duration)
    n = round(duration * RATE)
    if len(sounds) == 1:
        track = synthesise(sounds[0], random, duration)
    else:
        fade = _samples(random.uniform(0.02, 0.1))
        half = n // 2
        first, second = (synthesise(name, random, (half + fade) / RATE) for name in sounds)
        ramp = np.linspace(0, 1, fade, dtype=np.float32)
        track = np.zeros(n, np.float32)
        track[:half] = first[:half]
        track[half - fade : half] *= ramp[::-1]
        start = half - fade
        second = second[: n - start]
        second[:fade] *= ramp
        _add(track, second, start)
        # What rounding left at the end
        track[start + second.size :] = 0
    if random.random() < 0.5:
        noise = _noise(random, n, 20, 8000, random.uniform(-6, 0))
        track = track + noise * track.std() * 10 ** (-random.uniform(15, 40) / 20)
    return np.clip(track, -1, 1).astype(np.float32)
