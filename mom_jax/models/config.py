"""Model configuration: the published ``config.json`` as a frozen dataclass, and presets.

Importing this module does not import JAX.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from mom_jax.errors import InputError
from mom_jax.fields import Channels, Epsilon, ImplName, Name, Range, Slots, Taps, check_fields, checked, named_value
from mom_jax.files import read_json
from mom_jax.interop.model_types import in_our_words
from mom_jax.layers.rules import RULES
from mom_jax.models.attention_config import (
    NO_ATTENTION,
    AttentionConfig,
    Heads,
    Tokens,
    further_attention,
    kinds_of_layers,
    name_of,
    read_attention,
)
from mom_jax.models.router_config import RouterConfig

MEMORY_RULES = tuple(RULES)

Layers = Annotated[int, Range(least=1, most=2**14)]
TokenId = Annotated[int, Range(least=0, below=2**24)]

# fields of the published config with a single value that this library computes
_FIXED = {
    "attnres_block_size": (None,),
    "hidden_act": ("swish", "silu"),
    "mom_backend": ("gated_deltanet",),
}


@dataclasses.dataclass(frozen=True)
class MoMConfig(RouterConfig):
    """Hyper-parameters of a MoM language model.

    Fields carry the names and defaults of the published ``config.json`` (model type ``mom``);
    ``memory_rule``, those of the router, ``compute_dtype`` and ``impl`` are ours. Fields that the reference reads but
    that change nothing in the mathematics (``fuse_*``, ``capacity``, ...) are dropped by `from_dict`.
    """

    vocab_size: Annotated[int, Range(least=1, most=2**24)] = 32000
    """Rows of the embedding; a tokenizer may have fewer tokens."""
    hidden_size: Channels = 2048
    """Channels of the hidden states, D."""
    num_hidden_layers: Layers = 24
    """Layers, memory and attention layers together."""
    num_heads: Heads = 4
    """Heads of each memory, H."""
    head_dim: Channels = 256
    """Key channels per head, K."""
    expand_v: Annotated[float, Range(above=0, most=2**14)] = 1.0
    """Value channels per head, V, over head_dim."""
    hidden_ratio: Annotated[int, Range(least=1, most=2**10)] | None = 4
    """Sets intermediate_size when that is None."""
    intermediate_size: Annotated[int, Range(least=0, most=2**22)] | None = None
    """Width of the SwiGLU; 0 leaves it out of the blocks."""
    num_memories: Annotated[int, Range(least=1, most=2**10)] = 4
    """Routed memories, M."""
    topk: int = 2
    """Memories that each token is written to and read from, k."""
    shared_mem: bool = True
    """One more memory that every token is written to and read from."""
    single_kv_proj: bool = False
    """One k, v, b and a projection for all memories."""
    projection_rank: Annotated[int, Range(least=1, most=2**20)] | None = None
    """Memories share a projection and differ by matrices of this rank; None: projections of their own."""
    decay_spread: Annotated[float, Range(least=1, most=1e6)] = 1.0
    """How many times faster than the slowest routed memory the fastest forgets, at first; the others lie between."""
    learned_initial_state: bool = False
    """Memories begin every document with a learned state, 0 at first."""
    use_output_gate: bool = True
    """Gate the reads; kda, gated_deltanet2 and rwkv always have a gate of their own, hgrn2 and gsa have none."""
    use_short_conv: bool = True
    """Short convolutions of queries, keys and values; rwkv, mamba3, raven, sse and sparse_delta_memory have none."""
    conv_size: Taps = 4
    """Taps of the short convolutions, W."""
    norm_eps: Epsilon = 1e-6
    """Added to the mean square in the norms."""
    tie_word_embeddings: bool = False
    """Use the embedding as output matrix."""
    initializer_range: Annotated[float, Range(above=0, most=100)] = 0.02
    """Standard deviation of the initial embeddings and MLP weights."""
    max_position_embeddings: Tokens = 2048
    """For information only: nothing in MoM depends on it."""
    pad_token_id: TokenId | None = None
    """Padding token."""
    bos_token_id: TokenId | None = 1
    """Token at the beginning of a document."""
    eos_token_id: TokenId | tuple[TokenId, ...] | None = 2
    """Token at the end of a document, or several that end one."""
    attn: AttentionConfig = NO_ATTENTION
    """Attention layers of a hybrid."""
    attn_more: tuple[str, ...] = ()
    """Attention layers with other settings, each set as JSON with the fields of attn; in a file attn may be a list."""
    layer_pattern: str | None = None
    """Kinds of layers that repeat, such as 3m1a: three memory layers, one of attention; b has the next settings."""
    memory_rule: Name = "gated_deltanet"
    """How memories are written, forget and are read: a name, or package.module:Class for a rule of your own."""
    rule_options: tuple[str, ...] = ()
    """Options of the rule that have no field here, as name=value with the value in JSON."""
    mixture: bool = True
    """False: a single memory, to which every token is written, and no router."""
    allow_neg_eigval: bool = False
    """Delta rules: write strengths up to 2, so that a write may flip what it meets."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of activations; parameters stay float32."""
    impl: ImplName = "auto"
    """Implementation of the memories' recurrences: XLA or kernels, see mom_jax.ops.dispatch."""
    feature_map: Literal["identity", "elu", "relu"] = "identity"
    """linear_attention: of queries and keys."""
    norm_feature_map: bool = False
    """linear_attention: divide reads by the sum of their weights."""
    gate_logit_normalizer: Annotated[int, Range(least=1, most=2**20)] = 16
    """gla, gsa, raven, sse: the larger, the slower memories forget."""
    gate_low_rank_dim: Channels = 16
    """gla, rwkv7, sse: rank of the gate's projection."""
    decay_low_rank_dim: Channels = 64
    """rwkv6, rwkv7: rank of the decay's projection."""
    proj_low_rank_dim: Channels = 32
    """rwkv6: rank of each blend of a token with the one before."""
    a_low_rank_dim: Channels = 64
    """rwkv7: rank of the projection to removal rates."""
    num_slots: Slots = 64
    """gsa, raven: slots for each head."""
    mini_batch_size: Annotated[int, Range(least=1, most=2**16)] = 16
    """ttt, titans: tokens that take their gradients at the same memory."""
    reference_conv_leak: bool = False
    """Let short convolutions read across sequences and future tokens wherever no cache is given, as the PyTorch
    reference does in training. Only to reproduce its published curves."""

    def __post_init__(self):
        check_fields(self)
        self._check_tokens()
        self._check_memories()
        self._check_router()
        self._check_rule()
        if self.intermediate_size is None and self.hidden_ratio is None:
            raise InputError("hidden_ratio", None, "set hidden_ratio or intermediate_size")
        for item in self.attention.values():
            item.check(self.hidden_size)

    def _check_tokens(self) -> None:
        for field in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, field)
            ids = value if isinstance(value, tuple) else () if value is None else (value,)
            if any(token >= self.vocab_size for token in ids):
                raise InputError(field, value, f"must be below vocab_size ({self.vocab_size}), or None")

    def _check_memories(self) -> None:
        if not 1 <= self.topk <= self.num_memories:
            raise InputError("topk", self.topk, f"must lie between 1 and num_memories ({self.num_memories})")
        values = self.head_dim * self.expand_v
        if self.head_v_dim < 1 or abs(values - self.head_v_dim) > 1e-9 * values:
            remedy = f"head_dim ({self.head_dim}) * expand_v must be a positive whole number"
            raise InputError("expand_v", self.expand_v, remedy)
        object.__setattr__(self, "expand_v", self.head_v_dim / self.head_dim)  # one number for one size

        if self.projection_rank is not None and (self.single_kv_proj or not self.mixture):
            remedy = f"has no memories that could differ beside {'single_kv_proj' if self.mixture else 'mixture=False'}"
            raise InputError("projection_rank", self.projection_rank, f"{remedy}; leave one of the two out")

    def _check_rule(self) -> None:
        if self.memory_rule not in RULES and ":" not in self.memory_rule:
            close = difflib.get_close_matches(self.memory_rule, RULES, n=1)
            known = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(RULES)}"
            raise InputError("memory_rule", self.memory_rule, f"{known}, or package.module:Class of your own")
        self.named_rule_options()
        leaks = self.mixture and self.memory_rule == "gated_deltanet" and self.use_short_conv
        if self.reference_conv_leak and not leaks:
            remedy = "is for mixtures of gated_deltanet with short convolutions, as the reference has; leave it off"
            raise InputError("reference_conv_leak", True, remedy)

    def named_rule_options(self) -> dict[str, Any]:
        """``rule_options`` by name."""
        return dict(named_value("rule_options", text, "rank=8") for text in self.rule_options)

    @property
    def attention(self) -> dict[str, AttentionConfig]:
        """The settings of attention by kind of layer, those that are used."""
        settings = (self.attn, *further_attention(self.attn_more))
        named = {name_of(number): item for number, item in enumerate(settings)}
        return {kind: item for kind, item in named.items() if kind in self.layer_kinds}

    @property
    def layer_kinds(self) -> tuple[str, ...]:
        """What mixes along time in each layer: memory, attention or, with other settings, attention_b and so on."""
        settings = (self.attn, *further_attention(self.attn_more))
        return kinds_of_layers(settings, self.layer_pattern, self.num_hidden_layers)

    def spelt_out(self) -> Self:
        """The same with the numbers of attention layers in the place of a pattern."""
        if self.layer_pattern is None:
            return self
        numbers = {kind: tuple(i for i, k in enumerate(self.layer_kinds) if k == kind) for kind in self.attention}
        items = [dataclasses.replace(item, layers=numbers[kind]) for kind, item in self.attention.items()]
        attn, more = read_attention([dataclasses.asdict(item) for item in items])
        return dataclasses.replace(self, layer_pattern=None, attn=attn, attn_more=more)

    @property
    def has_router_bias(self) -> bool:
        """Whether memory layers have a router whose choice is biased."""
        return self.mixture and self.router_balance == "loss_free"

    @property
    def head_v_dim(self) -> int:
        """Value channels per head, V."""
        return round(self.head_dim * self.expand_v)

    @property
    def value_dim(self) -> int:
        """H * V."""
        return self.num_heads * self.head_v_dim

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the SwiGLU; from ``hidden_ratio`` it is 2/3 * ratio * hidden, rounded up to 256."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        assert self.hidden_ratio is not None
        return -(-int(self.hidden_size * self.hidden_ratio * 2 / 3) // 256) * 256

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Builds a config from a published ``config.json`` of any model type in `mom_jax.interop.model_types`.

        Published files have many fields that say nothing about the model; those are left out.

        Raises:
            InputError: another model type, a feature this library does not have, a bad value, or nearly the name of a
                field.
        """
        fields = in_our_words(checked("config", fields, dict), _published_rules)
        for field, only in _FIXED.items():
            if fields.get(field, only[0]) not in only:
                raise InputError(field, fields[field], f"not available; only {only[0]!r} is")
        known = {f.name for f in dataclasses.fields(cls)}
        for name in fields.keys() - known - _FIXED.keys():
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
            if close:
                raise InputError(name, fields[name], f"unknown; did you mean {close[0]}?")
        values: dict[str, Any] = {k: v for k, v in fields.items() if k in known}
        more = values.get("attn_more", ())
        values["attn"], values["attn_more"] = read_attention(fields.get("attn"))
        values["attn_more"] = values["attn_more"] or more
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-ready dictionary with ``model_type``; `from_dict` reads it back."""
        fields = {"model_type": "mom", **dataclasses.asdict(self)}
        further = [dataclasses.asdict(item) for item in further_attention(fields.pop("attn_more"))]
        first = fields["attn"] if self.attn.layers or self.layer_pattern or further else None
        return fields | {"attn": [first, *further] if further else first}

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Reads a ``config.json``.

        Raises:
            InputError: the file is missing or not JSON, or as `from_dict`.
        """
        return cls.from_dict(read_json(Path(path), dict[str, Any], "give a model's config.json", "config"))


def _published_rules() -> dict[str, Any]:
    from mom_jax.layers.rules.registry import published_rules  # loads JAX

    return published_rules()
