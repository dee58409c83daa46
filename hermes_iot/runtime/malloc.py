"""The C library's allocator, told that this process handles large messages one after the other.

glibc maps every block above its threshold (128 KiB at first, 32 MiB at most) anew and gives it back when it is freed,
and it cuts free memory off the heap's end. So each update that is received, decoded and merged pays for its pages a
second time: the kernel clears them and maps them at the first touch, hundreds of faults per megabyte. With both
thresholds raised (mallopt(3)) freed blocks stay in the heap and are used again. Stating one of them also ends glibc's
own adjusting of the other.

The price is memory that is kept rather than given back: what the process has needed at its peak, of which at most
`TRIM_BYTES` lies free at the heap's end. A coordinator runs on a machine that has it; a small board needs its memory for
other things, so devices do not ask for this.

Other C libraries (musl, macOS) have neither option. There nothing is done, and nothing is missing but speed.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Final

#: Blocks up to this size come from the heap: 32 MiB is the most glibc takes on 64-bit machines.
MMAP_BYTES: Final = 32 * 1024 * 1024
#: Free memory at the heap's end up to this size is kept.
TRIM_BYTES: Final = 256 * 1024 * 1024

# malloc.h
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> bool:
    """Set both thresholds for the whole process; whether they were set. May be called again."""
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a statically linked Python
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES))
