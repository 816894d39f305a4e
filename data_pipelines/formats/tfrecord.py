"""Reads the examples of TFDS files, in ArrayRecord or TFRecord, without TensorFlow.

A TFRecord is uint64 length, uint32 masked CRC-32C of the length, the example, uint32 masked CRC-32C
of the example; little endian. The checksum verifies the length. An example is verified by parsing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

from etils import epath

from data_pipelines.page import Reject
from flamingo_jax.core.paths import regular

MAX_EXAMPLE = 1 << 30  # bytes

# What the parser raises on an example that is damaged or has other features.
_UNPARSED = (RuntimeError, ValueError, KeyError, AttributeError, TypeError, IndexError)


def rows(path: str) -> Iterator[dict[str, Any] | Reject]:
    """Yields the examples of one file of a TFDS dataset, as {feature: value}; texts are bytes.

    A file that cannot be opened or read to its end yields a Reject for unreadable_file or
    truncated_file. An example that cannot be parsed yields one for corrupt_record.
    """
    import tensorflow_datasets as tfds
    from google.protobuf.message import DecodeError

    features = tfds.builder_from_directory(str(epath.Path(path).parent)).info.features
    is_array_record = ".array_record" in epath.Path(path).name
    for example in _arrayrecords(path) if is_array_record else _tfrecords(path):
        if isinstance(example, Reject):
            yield example
            continue
        try:
            row = features.deserialize_example_np(example)
        except (DecodeError, *_UNPARSED) as error:
            yield Reject("corrupt_record", f"{path}: {error}", broken=True)
        else:
            yield row


def _arrayrecords(path: str) -> Iterator[bytes | Reject]:
    from array_record.python import array_record_module

    damaged = False
    try:
        reader = array_record_module.ArrayRecordReader(os.fspath(regular(path)))
        for index in range(reader.num_records()):
            try:
                (example,) = reader.read([index])
            except (RuntimeError, ValueError, IndexError) as error:
                damaged = True
                yield Reject("corrupt_record", f"{path}, record {index}: {error}", broken=True)
            else:
                yield example
        reader.close()  # raises for earlier errors, for example a file of another format
    except (RuntimeError, ValueError, OSError) as error:
        if not damaged:
            yield Reject("unreadable_file", f"{path}: {error}", broken=True)


def _tfrecords(path: str) -> Iterator[bytes | Reject]:
    try:
        file = regular(path).open("rb")
    except OSError as error:
        yield Reject("unreadable_file", f"{path}: {error}", broken=True)
        return
    with file:
        while header := file.read(12):
            if len(header) < 12:
                break
            length, checksum = struct.unpack("<QI", header)
            if _masked_crc32c(header[:8]) != checksum or length > MAX_EXAMPLE:
                detail = f"{path}: no length of an example where one should be"
                yield Reject("truncated_file", detail, broken=True)
                return
            example = file.read(length + 4)
            if len(example) < length + 4:
                break
            yield example[:-4]
        else:
            return
    yield Reject("truncated_file", f"{path}: it ends within an example", broken=True)


def _masked_crc32c(data: bytes) -> int:
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
