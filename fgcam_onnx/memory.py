"""How much memory may be taken: what FGCAM_MEMORY says, else what the machine has.

A file of a kilobyte can state a tensor of a terabyte. Nothing tells an honest network of large pictures from a hostile
one, so whoever opens files of strangers says what they may cost: ``FGCAM_MEMORY=1G``.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from fgcam_onnx.errors import OptionError

__all__ = ["available", "limit"]

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# Where Linux says what a container may take.
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def limit() -> int | None:
    """FGCAM_MEMORY in bytes; None if it is not set.

    Raises:
        OptionError: it is no size.
    """
    stated = os.environ.get("FGCAM_MEMORY", "").strip()
    if not stated:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([KMGT]?)(?:i?B)?", stated, re.ASCII | re.IGNORECASE)
    if found is None or not (size := int(float(found[1]) * UNITS[found[2].upper()])):
        raise OptionError(f"FGCAM_MEMORY is {stated!r}, which is no size", known="bytes, or as 512M, 1.5G")
    return size


def available() -> int:
    """The most that one tensor could take, in bytes: the limit, else the memory of this machine or container."""
    stated = limit()
    if stated is not None:
        return stated
    sizes = []
    for file in CGROUPS:
        try:
            sizes.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    with contextlib.suppress(AttributeError, ValueError, OSError):  # another system
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min((size for size in sizes if size > 0), default=1 << 36)
