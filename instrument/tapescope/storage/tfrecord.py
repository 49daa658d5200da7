"""TFRecord framing in NumPy: the records of an event file, and the checksums that guard them.

A record is its length (uint64), the masked CRC-32C of these 8 bytes (uint32), the data, and the masked CRC-32C of the
data (uint32), all little-endian. TensorFlow is not needed to read them: see docs/decisions/0007.

TensorBoard's own reader without TensorFlow computes the checksum byte by byte in Python, 0.12 s a megabyte. Here all
records of a batch are advanced together, one byte of each row of ROW_BYTES at a time, 0.01 s a megabyte.
"""

import os
import struct
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

FRAMING_BYTES = 16
"""Bytes that a record takes beyond its data: length and two checksums."""
FIRST_BATCH_BYTES = 1 << 16
LARGEST_BATCH_BYTES = 1 << 22
"""Bytes of data whose checksums are computed at once. The first batch is small: `runs` reads a few records a file."""
ROW_BYTES = 256

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_MASK_DELTA = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, with the lowest bit first."""


class DamagedError(ValueError):
    """A record in the middle of a file is not what was written."""


def read(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the data of each record of a file, up to the first that is truncated or has a wrong checksum.

    Args:
      path: a file that may still be written to; what is appended while it is read may be left out.

    Raises:
      OSError: the file cannot be read.
      DamagedError: it was read up to a wrong checksum. A truncated last record, as a kill leaves, is left out.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        position = 0
        batch_bytes = FIRST_BATCH_BYTES
        whole = True
        damaged = False
        while whole:
            frames = []
            taken = 0
            while taken < batch_bytes:
                header = file.read(_HEADER.size)
                if len(header) < _HEADER.size:
                    whole = False
                    break
                length, _ = _HEADER.unpack(header)
                # A damaged length may be anything: compare before reading.
                end = position + length + FRAMING_BYTES
                if end > size or length > LARGEST_BATCH_BYTES:
                    damaged = not _has_valid_length(header)
                    whole = end <= size and not damaged
                    if not whole:
                        break
                frames.append((header, file.read(length), file.read(_CHECKSUM.size)))
                position = end
                taken += length
            valid = _count_valid(frames)
            for _, data, _ in frames[:valid]:
                yield data
            if valid < len(frames):
                whole = False
                damaged = bool(frames[valid][2])  # else the file was truncated while it is read
                position -= sum(len(data) + FRAMING_BYTES for _, data, _ in frames[valid:])
            batch_bytes = min(4 * batch_bytes, LARGEST_BATCH_BYTES)
        if damaged:
            raise DamagedError(f"it is damaged at byte {position} of {size}, and no record from there on can be read")


def frame(records: Sequence[bytes]) -> bytes:
    """Return the records as they are in a file: each with its length and checksums."""
    lengths = [struct.pack("<Q", len(record)) for record in records]
    framed = []
    for length, length_crc, record, record_crc in zip(
        lengths, _masked_crc32c(lengths), records, _masked_crc32c(records), strict=True
    ):
        framed += [length, _CHECKSUM.pack(length_crc), record, _CHECKSUM.pack(record_crc)]
    return b"".join(framed)


def write(path: str | os.PathLike[str], records: Iterable[bytes]) -> None:
    """Write a file of records, of which at most LARGEST_BATCH_BYTES and one record are in memory.

    Raises:
      OSError: the file cannot be written.
    """
    with open(path, "wb") as file:
        batch: list[bytes] = []
        batch_bytes = 0
        for record in records:
            batch.append(record)
            batch_bytes += len(record)
            if batch_bytes >= LARGEST_BATCH_BYTES:
                file.write(frame(batch))
                batch = []
                batch_bytes = 0
        file.write(frame(batch))


def _has_valid_length(header: bytes) -> bool:
    return int(_masked_crc32c([header[:8]])[0]) == _HEADER.unpack(header)[1]


def _count_valid(frames: Sequence[tuple[bytes, bytes, bytes]]) -> int:
    """Return how many frames, from the first on, have the checksums that they state."""
    lengths = [header[:8] for header, _, _ in frames]
    stated_length_crc = np.array([_HEADER.unpack(header)[1] for header, _, _ in frames], np.uint32)
    # A file that was truncated while it is read has shorter ends; they compare as wrong.
    stated_data_crc = np.array([int.from_bytes(checksum, "little") for _, _, checksum in frames], np.uint32)
    right = (_masked_crc32c(lengths) == stated_length_crc) & (
        _masked_crc32c([data for _, data, _ in frames]) == stated_data_crc
    )
    return len(frames) if right.all() else int(np.argmin(right))


def _masked_crc32c(parts: Sequence[bytes]) -> np.ndarray:
    """Return the masked CRC-32C of each byte string, uint32 [N].

    The register is linear, and zeros before the data leave a register of 0 as it is. So each string, behind the 4 bytes
    that set the register to all ones, is aligned at the end of rows of ROW_BYTES that begin with zeros. All rows are
    advanced at once, and then the rows of each string are joined.
    """
    rows = np.array([-(-(len(part) + len(_PRESET)) // ROW_BYTES) for part in parts], int)
    ends = np.cumsum(rows)
    buffer = bytearray(int(rows.sum()) * ROW_BYTES)
    for part, row in zip(parts, ends.tolist(), strict=True):
        end = row * ROW_BYTES
        buffer[end - len(part) - len(_PRESET) : end] = _PRESET + part
    columns = np.ascontiguousarray(np.frombuffer(buffer, np.uint8).reshape(-1, ROW_BYTES).T)
    states = _advance(np.zeros(columns.shape[1], np.uint32), columns)

    joined = np.zeros(len(parts), np.uint32)
    starts = ends - rows
    for row in range(rows.max(initial=0)):
        has_row = rows > row
        before = joined[has_row]
        shifted = _SKIP_ROW[0][before & 0xFF]
        for byte in (1, 2, 3):
            shifted = shifted ^ _SKIP_ROW[byte][(before >> np.uint32(8 * byte)) & 0xFF]
        joined[has_row] = shifted ^ states[starts[has_row] + row]
    crc = ~joined
    return ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(_MASK_DELTA)


def _advance(states: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Advance registers, uint32 [N], by the bytes of each column in turn, uint8 [K, N] or [K, 1]."""
    for column in columns:
        states = _TABLE[(states ^ column) & 0xFF] ^ (states >> np.uint32(8))
    return states


def _make_table() -> np.ndarray:
    """Return what each byte adds to the register, uint32 [256]."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(_POLYNOMIAL), table >> np.uint32(1))
    return table


def _make_preset() -> bytes:
    """Return the 4 bytes that take a register of 0 to all ones, found backwards from there."""
    by_top_byte = {int(value) >> 24: index for index, value in enumerate(_TABLE)}
    register = 0xFFFFFFFF
    for _ in range(4):
        index = by_top_byte[register >> 24]
        register = (((register ^ int(_TABLE[index])) << 8) & 0xFFFFFFFF) | index
    return register.to_bytes(4, "little")


_TABLE = _make_table()
_PRESET = _make_preset()
_SKIP_ROW = _advance(
    np.arange(256, dtype=np.uint32)[None, :] << np.arange(0, 32, 8, dtype=np.uint32)[:, None],
    np.zeros([ROW_BYTES, 1, 1], np.uint8),
)
"""What each byte of a register becomes ROW_BYTES zeros later, uint32 [4, 256]."""
