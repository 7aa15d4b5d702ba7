"""Decoding of tags that are not UTF-8."""

import codecs

__all__ = ["NOT_UTF8"]

NOT_UTF8 = "ultraflash.not_utf8"
"""Error handler for `av.open` that decodes tag bytes that are not UTF-8 as the Western
encoding of AVI files and old cameras."""


def _western(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error(NOT_UTF8, _western)
