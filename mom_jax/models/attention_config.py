"""The attention layers of a hybrid, and which layers they are. Importing this module does not import JAX."""

import dataclasses
import functools
import itertools
import json
import re
from typing import Annotated, Any, Self

from mom_jax.errors import InputError
from mom_jax.fields import Channels, Range, check_fields

Heads = Annotated[int, Range(least=1, most=2**14)]
Tokens = Annotated[int, Range(least=1, below=2**31)]

MEMORY, ATTENTION = "memory", "attention"
_LETTERS = "abcdefghijkl"  # of attention settings in a pattern; m is a memory layer


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Softmax attention layers of a hybrid with the same settings (the published ``attn`` field); none by default."""

    layers: tuple[Annotated[int, Range(least=0, below=2**14)], ...] = ()
    """Numbers of the layers that are attention layers, from 0."""
    num_heads: Heads = 4
    """Query heads, of hidden_size / num_heads channels unless head_dim says otherwise."""
    num_kv_heads: Heads | None = None
    """Key and value heads; as many as query heads if None."""
    qkv_bias: bool = False
    """Add biases to the query, key and value projections."""
    window_size: Tokens | None = None
    """Tokens that a query sees, itself included; all before it if None."""
    rope_theta: Annotated[float, Range(least=1, most=1e12)] = 10000.0
    """Base of the rotary frequencies."""
    head_dim: Channels | None = None
    """Channels of each head."""
    output_gate: bool = False
    """Multiply what each head reads by the sigmoid of a projection of the token (arXiv 2505.06708)."""
    qk_norm: bool = False
    """Norm the queries and keys of each head, with a weight, before they are turned."""
    rotary_fraction: Annotated[float, Range(least=0, most=1)] = 1.0
    """Share of a head's channels that positions turn, the first ones; 0 leaves positions out."""

    def __post_init__(self):
        check_fields(self, "attn.")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    def channels(self, hidden_size: int) -> int:
        """Of each head."""
        return self.head_dim or hidden_size // self.num_heads

    def rotated(self, hidden_size: int) -> int:
        """Channels of each head that positions turn."""
        return int(self.channels(hidden_size) * self.rotary_fraction)

    @classmethod
    def from_fields(cls, fields: Any) -> Self:
        """One item of a published ``attn`` field."""
        if not isinstance(fields, dict):
            raise InputError("attn", fields, "expected null, an object with layers and num_heads, or a list of such")
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(map(str, set(fields) - known))
        if unknown:
            raise InputError("attn", ", ".join(unknown), f"unknown; choose among {', '.join(sorted(known))}")
        return cls(**fields)

    def check(self, hidden_size: int) -> None:
        """Raises `InputError` where heads do not fit a hidden size."""
        if self.head_dim is None and hidden_size % self.num_heads:
            raise InputError("attn.num_heads", self.num_heads, f"must divide hidden_size ({hidden_size}); set head_dim")
        if self.rotated(hidden_size) % 2:
            remedy = f"must divide hidden_size ({hidden_size}) into heads of an even size"
            if self.head_dim is not None or self.rotary_fraction != 1:
                remedy = f"of {self.channels(hidden_size)} channels are not an even number; choose another"
                raise InputError("attn.rotary_fraction", self.rotary_fraction, remedy)
            raise InputError("attn.num_heads", self.num_heads, remedy)
        if self.num_heads % self.kv_heads:
            remedy = f"must divide attn.num_heads ({self.num_heads})"
            raise InputError("attn.num_kv_heads", self.num_kv_heads, remedy)


NO_ATTENTION = AttentionConfig()


def read_attention(fields: Any) -> tuple[AttentionConfig, tuple[str, ...]]:
    """``attn`` and ``attn_more`` from a published ``attn`` field: None, an object, or a list of objects."""
    if fields is None or fields == []:
        return AttentionConfig(), ()
    items = fields if isinstance(fields, list | tuple) else [fields]
    first, *others = (AttentionConfig.from_fields(item) for item in items)
    return first, tuple(json.dumps(dataclasses.asdict(item)) for item in others)


@functools.cache
def further_attention(texts: tuple[str, ...]) -> tuple[AttentionConfig, ...]:
    """The settings that ``attn_more`` holds as JSON."""
    found = []
    for text in texts:
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise InputError("attn_more", text, 'expected JSON, as in {"layers": [3], "num_heads": 4}') from error
        found.append(AttentionConfig.from_fields(fields))
    return tuple(found)


def name_of(number: int) -> str:
    """The kind of layers with these attention settings: ``attention``, ``attention_b``, ..."""
    return ATTENTION if number == 0 else f"{ATTENTION}_{_LETTERS[number]}"


@functools.cache
def kinds_of_layers(settings: tuple[AttentionConfig, ...], pattern: str | None, count: int) -> tuple[str, ...]:
    """What mixes along time in each of ``count`` layers.

    Args:
        settings: of attention.
        pattern: such as ``3m1a``: three memory layers, one of the first attention settings (b: the second), repeated.
        count: layers in all.

    Raises:
        InputError: layers that do not exist or are named twice, or a pattern that cannot be read or does not fit.
    """
    if len(settings) > len(_LETTERS):
        raise InputError("attn_more", f"{len(settings) - 1} of them", f"at most {len(_LETTERS) - 1} are possible")
    if pattern is not None:
        return _from_pattern(settings, pattern, count)
    if not all(attn.layers for attn in settings[1:]):
        raise InputError("attn_more", "settings without layers", "name their layers, or use layer_pattern")
    places = {layer: name_of(number) for number, attn in enumerate(settings) for layer in attn.layers}
    named = [layer for attn in settings for layer in attn.layers]
    if len(places) < len(named) or any(layer >= count for layer in named):
        raise InputError("attn.layers", named, f"must be different layer numbers from 0 to {count - 1}")
    return tuple(places.get(layer, MEMORY) for layer in range(count))


def _from_pattern(settings: tuple[AttentionConfig, ...], pattern: str, count: int) -> tuple[str, ...]:
    if any(attn.layers for attn in settings):
        remedy = "says which layers are attention layers, and so does attn.layers; leave one of the two out"
        raise InputError("layer_pattern", pattern, remedy)
    letters = "m" + _LETTERS[: len(settings)]
    if not re.fullmatch(rf"([1-9][0-9]{{0,4}})?[{letters}](([1-9][0-9]{{0,4}})?[{letters}])*", pattern):
        remedy = f"expected numbers and letters as in 3m1a; m is a memory layer, {' '.join(letters[1:])} attention"
        raise InputError("layer_pattern", pattern, remedy)
    runs = re.findall(r"(\d*)([a-m])", pattern)
    names = {letter: name_of(number) for number, letter in enumerate(_LETTERS)} | {"m": MEMORY}
    period = [names[letter] for times, letter in runs for _ in range(int(times or 1))]
    if count % len(period):
        remedy = f"has {len(period)} layers, which does not divide num_hidden_layers ({count})"
        raise InputError("layer_pattern", pattern, remedy)
    return tuple(itertools.islice(itertools.cycle(period), count))
