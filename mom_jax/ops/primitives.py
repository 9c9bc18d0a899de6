"""All recurrences by name."""

from mom_jax.ops.delta_rule import DELTA_RULE
from mom_jax.ops.gated_slots import gated_slots
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.rank_one_decay import RANK_ONE_DECAY
from mom_jax.ops.scalar_decay import SCALAR_DECAY
from mom_jax.ops.titans import titans_linear
from mom_jax.ops.ttt import ttt_linear
from mom_jax.ops.vector_decay import VECTOR_DECAY

# Those that are made for a size or a mini-batch stand here with one of them.
PRIMITIVES: dict[str, Primitive] = {
    primitive.name: primitive
    for primitive in (
        DELTA_RULE,
        SCALAR_DECAY,
        VECTOR_DECAY,
        RANK_ONE_DECAY,
        gated_slots(num_slots=64),
        ttt_linear(mini_batch=16),
        titans_linear(mini_batch=16),
    )
}
