"""Long contexts by architecture: table 3 of the paper.

    mom-jax experiment longbench --scale tiny        two CPU cores, two minutes after `commonsense`
    mom-jax experiment longbench --scale paper       32 GPUs, six days a model

Tiny: the models of `commonsense`, trained on windows of 512 bytes read windows of 4,096; counted are the bits per
byte of the later half. Paper: LongBench at 1.3B; averages RetNet 13.61, HGRN2 13.02, GSA 14.61, Gated DeltaNet 13.98,
MoM 15.64 (by category in `paper.LONGBENCH`).
"""

from ..common.comparison import Comparison
from .recall import MODELS

RECURRENT = {name: model for name, model in MODELS.items() if name not in ("GLA", "Transformer++")}

EXPERIMENT = Comparison(RECURRENT, tiny=("long",), small=(), paper="longbench-tasks", sizes=("mom-1.3b",)).experiment
