"""``python -m benchmarks`` prints the tables for this machine.

The process runs again with huge pages for large allocations (a setting of glibc; others ignore it). XLA allocates its
temporaries anew at every call, and at long sequences handing out small pages is a third of the time.
"""

import os
import sys

HUGE_PAGES = "glibc.malloc.hugetlb=1"

if "GLIBC_TUNABLES" not in os.environ:
    arguments = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
    os.execve(sys.executable, arguments, os.environ | {"GLIBC_TUNABLES": HUGE_PAGES})

from benchmarks.cpu import main  # noqa: E402 (JAX must not start before)

main()
