"""Text that people wrote: its bytes, its lines, and the names of files in it."""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import Path

from oneforcing_jax.errors import InputError
from oneforcing_jax.system import bounded

# Windows puts it before the text of a file. It is no part of the text.
_MARK = "\ufeff"
_ENDS = re.compile(r"\r\n|\n|\r")
# UTF-32's little-endian mark begins with UTF-16's.
_OTHERS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read(path: Path, most: int | None = None) -> str:
    """The text of a file of `most` bytes; see `decoded`.

    Raises:
      InputError: it is larger, or as `decoded`.
    """
    return decoded(path.read_bytes() if most is None else bounded.content(path, most), path)


def decoded(content: bytes, where: object) -> str:
    """Text from UTF-8; a byte order mark before it is left out.

    Args:
      content: bytes.
      where: named in the error.

    Raises:
      InputError: it is no UTF-8; says which encoding it is, or which line is wrong.
    """
    found = next((name for mark, name in _OTHERS.items() if content.startswith(mark)), "")
    if not found and b"\0" in content:
        found = "zero bytes, as in UTF-16"  # they are characters of UTF-8, which no text holds
    if not found:
        try:
            return content.decode().removeprefix(_MARK)
        except UnicodeDecodeError as error:
            line = 1 + len(_ENDS.findall(content[: error.start].decode()))
            found = f"byte 0x{content[error.start]:02x} in line {line} ({error.reason})"
    raise InputError(f"{where}: expected UTF-8 text, found {found}; save it as UTF-8")


def lines(text: str) -> list[str]:
    r"""The lines of a text, without their ends, which are \n, \r\n and \r alone.

    `str.splitlines` ends lines at eight other characters, too (U+2028, vertical tabs, ...), which belong to a
    prompt that was pasted from a document. A mark that begins a line is left out: joined files have theirs.
    """
    found = [line.removeprefix(_MARK) for line in _ENDS.split(text)]
    return found if found[-1] else found[:-1]


def form(name: str) -> str:
    """A name as it is compared: file systems and editors write an é as one character or as two."""
    return unicodedata.normalize("NFC", name)


def find(folder: Path, name: str) -> Path | None:
    """The file of this name in a folder, in whichever Unicode form it is spelt there."""
    if (folder / name).is_file():
        return folder / name
    if name.isascii() or not folder.is_dir():
        return None
    return next((f for f in sorted(folder.iterdir()) if form(f.name) == form(name)), None)


def check_unicode(where: str, words: str) -> None:
    """Refuses half a surrogate pair, which JSON can hold and UTF-8 cannot.

    Raises:
      InputError: names the place.
    """
    try:
        words.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{where}: expected Unicode text, found half a pair in it; correct it"
        ) from None
