"""What the C library must be told, so that coding many photographs does not fill the memory."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

MMAP_THRESHOLD = -3  # the parameter's number in glibc's malloc.h
WHILE_CODING = 1 << 20  # bytes
OTHERWISE = 1 << 25  # bytes: what glibc raises it to by itself


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Has glibc ask the system for each large block, and give it back at once, while photographs are coded and their codes kept.

    ONNX Runtime gives its arenas back after every coding. By itself glibc soon takes blocks of up to 32 MB from its heap, where codes
    that are kept then lie between them and the holes are seldom large enough for the next arenas. With the default model and pieces of
    0.2 megapixels that is 4.8 MB for each coding that is kept, 12 GB after 1,900 of them, against nothing with blocks from 1 MB on apart
    (243 to 425 MB over 40 pieces, against 233 to 233), which take at most a tenth more time. A step of the prior's training would take
    a sixth more, so it is for the codings alone. Other C libraries are left as they are, and so is one whose user has set
    `MALLOC_MMAP_THRESHOLD_`.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(MMAP_THRESHOLD, WHILE_CODING)
    try:
        yield
    finally:
        mallopt(MMAP_THRESHOLD, OTHERWISE)
