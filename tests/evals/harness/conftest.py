"""One tiny model on bytes, and questions to it as the harness asks them."""

import numpy as np
import pytest
from flax import nnx

from mom_jax.data.tokenizers import ByteTokenizer
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM

CONFIG = MoMConfig(vocab_size=264, hidden_size=16, num_hidden_layers=1, num_heads=1, head_dim=8, intermediate_size=16,
                   num_memories=2, topk=1, initializer_range=0.5, bos_token_id=256, eos_token_id=257)  # fmt: skip


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
    """From token ids to log-probabilities [T, vocab] of what follows each, by one unpadded pass, in float64."""

    def run(ids):
        logits = np.asarray(model(np.asarray([ids], np.int32)).logits[0], np.float64)
        return logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True)) \
            - logits.max(-1, keepdims=True)  # fmt: skip

    return run
