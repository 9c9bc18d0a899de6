"""The experiments under one name, whatever a user's folder holds.

In the source tree they are the folder ``experiments`` beside this package, to which this module's path leads. A wheel
has them in the place of this module.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[1] / "experiments")]
