"""Damages files as a disk, a network or an attacker does, to find faults in readers."""

from collections.abc import Sequence

import numpy as np

# Unexpected values of a length, a count or an offset in a header.
_EXTREMES = (
    *(0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1),
)
# Unexpected numbers in digits.
_EXTREME_DIGITS = (
    *(b"0", b"-1", b"7", b"99999999999999999999"),
    *(b"1e999", b"4294967296", b"77777777777"),
)
_MOST_BYTES = 1 << 18  # of a damaged file, since some damage repeats parts many times


def mutate(seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Returns one of the files after one to four kinds of damage.

    Args:
      seeds: undamaged files of one format.
      rng: source of all random choices.
    """
    data = seeds[rng.integers(len(seeds))]
    for _ in range(rng.integers(1, 5)):
        damage = _DAMAGES[rng.integers(len(_DAMAGES))]
        data = damage(data, seeds, rng)[:_MOST_BYTES]
    return data


def _flip_bits(data: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    if not data:
        return data
    damaged = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 9)):
        damaged[place] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _set_bytes(data: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng, most=16)
    return data[:start] + rng.bytes(end - start) + data[end:]


def _truncate(data: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    return data[: rng.integers(len(data) + 1)]


def _extreme_number(data: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    width = int(rng.choice([1, 2, 4, 8]))
    value = _EXTREMES[rng.integers(len(_EXTREMES))] % 256**width
    near_start = rng.random() < 0.5  # where headers are
    start = int(rng.integers(min(len(data), 64) + 1 if near_start else len(data) + 1))
    number = value.to_bytes(width, ("little", "big")[rng.integers(2)])
    return data[:start] + number + data[start + width :]


def _extreme_digits(data: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Replaces a number in digits, as in headers of WARC and tar, and attributes of HTML."""
    digits = [place for place, byte in enumerate(data[:4096]) if 48 <= byte < 58]
    if not digits:
        return data
    start = int(rng.choice(digits))
    end = start
    while end < len(data) and 48 <= data[end] < 58:
        end += 1
    number = _EXTREME_DIGITS[rng.integers(len(_EXTREME_DIGITS))]
    return data[:start] + number + data[end:]


def _remove(data: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _repeat(data: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    start, end = _span(data, rng, most=512)
    return data[:start] + data[start:end] * int(rng.choice([2, 3, 100])) + data[end:]


def _splice(data: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    other = seeds[rng.integers(len(seeds))]
    return data[: rng.integers(len(data) + 1)] + other[rng.integers(len(other) + 1) :]


def _graft(data: bytes, seeds: Sequence[bytes], rng: np.random.Generator) -> bytes:
    other = seeds[rng.integers(len(seeds))]
    start, end = _span(other, rng)
    place = int(rng.integers(len(data) + 1))
    replaced = end - start if rng.random() < 0.5 else 0
    return data[:place] + other[start:end] + data[place + replaced :]


_DAMAGES = (
    *(_flip_bits, _set_bytes, _truncate, _extreme_number, _extreme_digits),
    *(_remove, _repeat, _splice, _graft),
)


def _span(data: bytes, rng: np.random.Generator, most: int | None = None) -> tuple[int, int]:
    """Returns the start and end of a random part of the file."""
    start = int(rng.integers(len(data) + 1))
    longest = len(data) - start if most is None else min(most, len(data) - start)
    return start, start + int(rng.integers(longest + 1))
