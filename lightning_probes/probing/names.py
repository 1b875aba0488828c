"""Allowed names of probes: a name is the prefix of the probe's keys and part of a file name."""

from __future__ import annotations

import unicodedata
from typing import TypeGuard
from urllib.parse import quote

from lightning_probes.probing.values import refuse

_LONGEST = 200  # bytes: most file systems take 255, and numbers and endings are added

NAME = "a text without '*', '.', backslash and control characters"


def check_name(name: object) -> None:
    """Check that a name can be part of a key and of a file name.

    In a key, W&B reads `*` as a pattern, and a dot or backslash as a path into a nested value.

    Raises:
        ValueError: If it can't be; the message names the argument.

    Example:
        >>> check_name("sharpness of the head/val")
    """
    if not is_name(name):
        refuse("name", NAME, name)
    elif (length := len(file_name(name).encode())) > _LONGEST:
        raise ValueError(f"name must be shorter: as a file name it has {length} bytes, and at most {_LONGEST} fit")


def is_name(name: object) -> TypeGuard[str]:
    """Whether it can be a part of a key."""
    return isinstance(name, str) and bool(name) and name.isprintable() and not set(name) & set("*.\\")


def file_name(name: str) -> str:
    """A probe's name as part of a file name on any system. Letters of any script, digits and spaces are kept.

    Example:
        >>> file_name("曲率 a/b:c")
        '曲率 a%2Fb%3Ac'
    """
    return "".join(c if unicodedata.category(c)[0] in "LMN" or c in " -_" else quote(c, safe="") for c in name)
