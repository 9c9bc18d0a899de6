"""One tiny model on bytes, and questions to it as the harness asks them."""

import jax
import numpy as np
import pytest
from flax import nnx

from mom_jax.data.tokenizers import ByteTokenizer
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM

CONFIG = MoMConfig(vocab_size=264, hidden_size=16, num_hidden_layers=1, num_heads=1, head_dim=8, intermediate_size=16,
                   memory_rule="linear_attention", use_short_conv=False, num_memories=2, topk=1,
                   initializer_range=0.5, bos_token_id=256, eos_token_id=257)  # fmt: skip


@pytest.fixture(scope="session")
def model() -> MoMForCausalLM:
    """A random model whose logits are spread out."""
    return MoMForCausalLM(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    """Bytes."""
    return ByteTokenizer()


@pytest.fixture(scope="session")
def log_probabilities(model):
    """From token ids to log-probabilities [T, vocab] of what follows each, in float64, from the model's logits."""
    logits = jax.jit(lambda ids: model(ids).logits[0])  # one length: what stands behind the ids cannot reach them

    def run(ids):
        row = np.asarray(logits(np.pad(np.asarray([ids], np.int32), ((0, 0), (0, 64 - len(ids))))), np.float64)
        row = row[: len(ids)] - row[: len(ids)].max(-1, keepdims=True)
        return row - np.log(np.exp(row).sum(-1, keepdims=True))

    return run
