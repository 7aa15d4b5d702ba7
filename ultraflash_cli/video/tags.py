"""Tags of programs that do not write UTF-8."""

import codecs

__all__ = ["NOT_UTF8"]

NOT_UTF8 = "ultraflash.not_utf8"
"""Tells `av.open` to take bytes of a tag that are no UTF-8 for the western letters that AVI and old cameras write."""


def _western(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", "replace"), error.end


codecs.register_error(NOT_UTF8, _western)
