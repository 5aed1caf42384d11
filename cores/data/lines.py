"""The lines of a text file, packed or not."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cores.errors import UserError

PACKINGS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""By the suffix behind a text file's own; pyarrow, which comes with datasets, unpacks them all."""


def lines(path: Path, newline: str) -> Iterator[str]:
    """The file's lines with their ends, UTF-8 with or without a byte order mark.

    newline: as for `open`; "" leaves every kind of line end as it is.
    """
    try:
        with _unpacked(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline=newline) as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise UserError(
                        f"{path}:{number}: holds NUL bytes, as a copy does that was cut short or "
                        "text in UTF-16; copy or convert the file again."
                    )
                yield line
    except UnicodeDecodeError as error:
        number, byte = _undecodable(path)
        other = "utf-16" if number == 1 and byte in (0xFE, 0xFF) else "latin1"
        raise UserError(
            f"{path}:{number}: not UTF-8 (byte 0x{byte:02x}); convert the file, e.g. with iconv -f "
            f"{other} -t utf-8; unpack it if it is compressed, or name it "
            "by its packing (.gz, .bz2, .zst), and name a Parquet file .parquet."
        ) from error
    except OSError as error:
        if error.errno or path.suffix.lower() not in PACKINGS:
            raise  # the disk's
        raise UserError(f"{path}: cannot be unpacked ({error}); copy it here again.") from error


def _unpacked(path: Path) -> Any:
    """The file's bytes, opened for reading."""
    packing = PACKINGS.get(path.suffix.lower())
    if packing is None:
        return path.open("rb")
    import pyarrow

    return pyarrow.CompressedInputStream(path.open("rb"), packing)


def _undecodable(path: Path) -> tuple[int, int]:
    """Line and byte where the file stops being UTF-8: no UTF-8 character holds a line break."""
    with _unpacked(path) as raw:
        number = 1
        for number, line in enumerate(io.BufferedReader(raw), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, line[error.start]
    return number, line[-1]
