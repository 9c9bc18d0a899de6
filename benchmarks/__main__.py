"""``python -m benchmarks`` is ``mom-jax bench``, for a tree that is not installed."""

import sys

from mom_jax.cli.main import main

sys.exit(main(["bench", *sys.argv[1:]]))
