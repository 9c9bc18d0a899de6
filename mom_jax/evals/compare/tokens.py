"""The tokens that both sides read."""

import numpy as np

from mom_jax.data.tokenizers import check_rows, load_tokenizer
from mom_jax.errors import InputError
from mom_jax.models.config import MoMConfig
from mom_jax.paths import local_path


def random_tokens(config: MoMConfig, batch: int, length: int, seed: int) -> np.ndarray:
    """Ids [batch, length], int32, uniform over the vocabulary without the padding token.

    The reference gives the padding token's embedding no gradient, whatever its mask says.
    """
    ids = np.arange(config.vocab_size, dtype=np.int32)
    return np.random.default_rng(seed).choice(ids[ids != config.pad_token_id], (batch, length))


def text_tokens(path: str, tokenizer: str, config: MoMConfig, batch: int, length: int, seed: int) -> np.ndarray:
    """Ids [batch, length] of windows of a text, at random places.

    Raises:
        InputError: the file cannot be read or is too short, or the tokenizer is not the model's.
    """
    try:
        text = local_path(path, "text").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError("text", path, f"cannot be read as UTF-8 text ({error})") from error
    loaded = load_tokenizer(tokenizer)
    check_rows(tokenizer, loaded.vocab_size, config.vocab_size)
    ids = np.asarray(loaded.encode(text), np.int32)
    if len(ids) < length:
        raise InputError("text", path, f"holds {len(ids)} tokens, fewer than the {length} of a row")
    starts = np.random.default_rng(seed).integers(0, len(ids) - length + 1, batch)
    return np.stack([ids[start : start + length] for start in starts])
