"""core.host_memory: by default large blocks return to the system; after keep_freed they do not."""

import ctypes
import json

import pytest

PROGRAM = """
import ctypes, json, resource, sys
from flamingo_jax.core import host_memory
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def pages(size=256 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    place = library.malloc(size)
    library.memset(place, 1, size)
    library.free(place)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = [pages() for _ in range(3)]
kept = host_memory.keep_freed()
after = [pages() for _ in range(3)]
print(json.dumps({"before": before[1:], "kept": kept, "after": after[1:]}))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not GNU's")
def test_freed_memory_is_not_asked_for_again(run_program):
    found = json.loads(run_program("-c", PROGRAM).stdout)
    assert found["kept"] is True
    assert min(found["before"]) > 100  # 65,536 pages of 4 KiB, or 128 of 2 MiB
    assert max(found["after"]) < 10
