"""``python -m mom_jax`` is ``mom-jax``."""

import sys

from mom_jax.cli.main import main

sys.exit(main())
