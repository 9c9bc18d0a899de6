"""Model configuration: the published ``config.json`` as a frozen dataclass, and presets.

Importing this module does not import JAX.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, get_args

from mom_jax.errors import InputError
from mom_jax.models.model_types import in_our_words

MemoryRuleName = Literal[
    "gated_deltanet",
    "deltanet",
    "kda",
    "linear_attention",
    "retnet",
    "lightning",
    "mamba2",
    "gla",
    "hgrn2",
    "gsa",
    "rwkv6",
    "rwkv7",
    "ttt",
    "titans",
]
MEMORY_RULES = get_args(MemoryRuleName)
RouterBalance = Literal["auxiliary", "loss_free", "none"]
ImplName = Literal["auto", "reference", "xla", "tpu", "gpu"]

# fields of the published config with a single value that this library computes
_FIXED = {
    "attnres_block_size": (None,),
    "hidden_act": ("swish", "silu"),
    "mom_backend": ("gated_deltanet",),
}


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """The softmax attention layers of a hybrid (the published ``attn`` field); none by default."""

    layers: tuple[int, ...] = ()
    """Numbers of the layers that are attention layers, from 0."""
    num_heads: int = 4
    """Query heads, of hidden_size / num_heads channels."""
    num_kv_heads: int | None = None
    """Key and value heads; as many as query heads if None."""
    qkv_bias: bool = False
    """Add biases to the query, key and value projections."""
    window_size: int | None = None
    """Tokens that a query sees, itself included; all before it if None."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))  # JSON has lists

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads


@dataclasses.dataclass(frozen=True)
class MoMConfig:
    """Hyper-parameters of a MoM language model.

    Fields carry the names and defaults of the published ``config.json`` (model type
    ``mom``); ``memory_rule``, ``router_balance``, ``compute_dtype``
    and ``impl`` are ours. Fields that the reference
    reads but that change nothing in the mathematics (``fuse_*``, ``capacity``, ...) are
    dropped by `from_dict`.
    """

    vocab_size: int = 32000
    hidden_size: int = 2048
    num_hidden_layers: int = 24
    num_heads: int = 4
    head_dim: int = 256  # key channels per head, K
    expand_v: float = 1.0  # value channels per head, V = head_dim * expand_v
    hidden_ratio: int | None = 4  # sets intermediate_size when that is None
    intermediate_size: int | None = None  # width of the SwiGLU; 0 leaves it out of the blocks
    num_memories: int = 4  # routed memories, M
    topk: int = 2  # memories per token, k
    shared_mem: bool = True
    single_kv_proj: bool = False  # one k/v/b/a projection for all memories
    use_output_gate: bool = True  # kda and rwkv always have theirs; hgrn2 and gsa have none
    use_short_conv: bool = True  # rwkv has none
    conv_size: int = 4
    norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    aux_loss_scale: float = 0.01
    # What keeps loads even: the auxiliary loss, a bias in the router's choice that each step moves against the load
    # (arXiv 2408.15664), or nothing.
    router_balance: RouterBalance = "auxiliary"
    router_bias_rate: float = 0.001  # loss_free: what a step moves the bias
    max_position_embeddings: int = 2048  # informative: nothing in MoM depends on it
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    attn: AttentionConfig = AttentionConfig()  # attention layers of a hybrid
    memory_rule: MemoryRuleName = "gated_deltanet"
    mixture: bool = True  # False: one memory that every token is written to, and no router
    allow_neg_eigval: bool = False  # delta rules: write strengths up to 2, so that a write may flip what it meets
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters stay float32
    impl: ImplName = "auto"  # of the memories' recurrences: XLA or kernels, see mom_jax.ops.dispatch
    feature_map: Literal["identity", "elu", "relu"] = "identity"  # linear_attention: of queries and keys
    norm_feature_map: bool = False  # linear_attention: divide reads by the sum of their weights
    gate_logit_normalizer: int = 16  # gla, gsa: the larger, the slower memories forget
    gate_low_rank_dim: int = 16  # gla, rwkv7: rank of the gate's projection
    decay_low_rank_dim: int = 64  # rwkv6, rwkv7: rank of the decay's projection
    proj_low_rank_dim: int = 32  # rwkv6: rank of each blend of a token with the one before
    a_low_rank_dim: int = 64  # rwkv7: rank of the projection to removal rates
    num_slots: int = 64  # gsa: slots for each head
    mini_batch_size: int = 16  # ttt, titans: tokens that take their gradients at the same memory
    # Let short convolutions read across sequences and future tokens wherever no cache is given, as the
    # PyTorch reference does in training. Only to reproduce its published curves.
    reference_conv_leak: bool = False

    def __post_init__(self):
        sizes = ["vocab_size", "hidden_size", "num_hidden_layers", "num_heads", "head_dim", "num_memories", "conv_size"]
        sizes += ["gate_logit_normalizer", "gate_low_rank_dim", "decay_low_rank_dim", "proj_low_rank_dim"]
        sizes += ["a_low_rank_dim", "num_slots", "mini_batch_size"]
        for field in sizes:
            if getattr(self, field) < 1:
                raise InputError(field, getattr(self, field), "must be at least 1")
        if not 1 <= self.topk <= self.num_memories:
            raise InputError("topk", self.topk, f"must lie between 1 and num_memories ({self.num_memories})")
        if self.head_dim * self.expand_v != self.head_v_dim or self.head_v_dim < 1:
            remedy = f"head_dim ({self.head_dim}) * expand_v must be a positive whole number"
            raise InputError("expand_v", self.expand_v, remedy)
        if self.memory_rule == "ttt" and self.head_v_dim != self.head_dim:
            raise InputError("expand_v", self.expand_v, "must be 1 with memory_rule ttt (values as wide as keys)")
        if not self.use_output_gate and self.memory_rule in ("kda", "rwkv6", "rwkv7"):
            remedy = f"is not available: memory_rule {self.memory_rule} has its own gate"
            raise InputError("use_output_gate", False, remedy)
        if self.intermediate_size is None and self.hidden_ratio is None:
            raise InputError("hidden_ratio", None, "set hidden_ratio or intermediate_size")
        for field, known in (
            ("memory_rule", MEMORY_RULES),
            ("compute_dtype", ("float32", "bfloat16")),
            ("impl", get_args(ImplName)),
            ("router_balance", get_args(RouterBalance)),
        ):
            if getattr(self, field) not in known:
                raise InputError(field, getattr(self, field), f"choose one of {', '.join(known)}")
        if not 0 < self.router_bias_rate < 1:
            raise InputError("router_bias_rate", self.router_bias_rate, "must lie between 0 and 1")
        leaks = self.mixture and self.memory_rule == "gated_deltanet" and self.use_short_conv
        if self.reference_conv_leak and not leaks:
            remedy = "is for mixtures of gated_deltanet with short convolutions, as the reference has; leave it off"
            raise InputError("reference_conv_leak", True, remedy)
        if self.attn.layers:
            self._check_attention(self.attn)

    def _check_attention(self, attn: AttentionConfig) -> None:
        outside = [i for i in attn.layers if not 0 <= i < self.num_hidden_layers]
        if outside or len(set(attn.layers)) < len(attn.layers):
            remedy = f"must be different layer numbers from 0 to {self.num_hidden_layers - 1}"
            raise InputError("attn.layers", list(attn.layers), remedy)
        if attn.num_heads < 1 or self.hidden_size % (2 * attn.num_heads):
            remedy = f"must divide hidden_size ({self.hidden_size}) into heads of an even size"
            raise InputError("attn.num_heads", attn.num_heads, remedy)
        if attn.kv_heads < 1 or attn.num_heads % attn.kv_heads:
            raise InputError("attn.num_kv_heads", attn.num_kv_heads, f"must divide attn.num_heads ({attn.num_heads})")
        if attn.window_size is not None and attn.window_size < 1:
            raise InputError("attn.window_size", attn.window_size, "must be at least 1, or None for no window")

    @property
    def layer_kinds(self) -> tuple[Literal["memory", "attention"], ...]:
        """What mixes along time in each layer."""
        return tuple("attention" if i in self.attn.layers else "memory" for i in range(self.num_hidden_layers))

    @property
    def has_router_bias(self) -> bool:
        """Whether memory layers have a router whose choice is biased."""
        return self.mixture and self.router_balance == "loss_free"

    @property
    def auxiliary_weight(self) -> float:
        """What the auxiliary loss counts in training."""
        return self.aux_loss_scale if self.router_balance == "auxiliary" else 0.0

    @property
    def head_v_dim(self) -> int:
        """Value channels per head, V."""
        return round(self.head_dim * self.expand_v)

    @property
    def key_dim(self) -> int:
        """H * K."""
        return self.num_heads * self.head_dim

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
        """Builds a config from a published ``config.json`` of any model type in `mom_jax.models.model_types`.

        Published files have many fields that say nothing about the model; those are left out.

        Raises:
            InputError: another model type, a feature this library does not have, or nearly the name of a field.
        """
        fields = in_our_words(fields)
        for field, only in _FIXED.items():
            if fields.get(field, only[0]) not in only:
                raise InputError(field, fields[field], f"not available; only {only[0]!r} is")
        known = {f.name for f in dataclasses.fields(cls)}
        for name in fields.keys() - known - _FIXED.keys():
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
            if close:
                raise InputError(name, fields[name], f"unknown; did you mean {close[0]}?")
        values: dict[str, Any] = {k: v for k, v in fields.items() if k in known}
        values["attn"] = _attention(fields.get("attn"))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-ready dictionary with ``model_type``; `from_dict` reads it back."""
        attn = dataclasses.asdict(self.attn) if self.attn.layers else None
        return {"model_type": "mom", **dataclasses.asdict(self), "attn": attn}

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Reads a ``config.json``.

        Raises:
            InputError: the file is missing or not JSON, or as `from_dict`.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError("config", str(path), f"cannot be read as JSON ({error})") from error
        return cls.from_dict(fields)


def _attention(fields: Any) -> AttentionConfig:
    """Reads the published ``attn`` field: None or a dictionary."""
    if fields is None:
        return AttentionConfig()
    if not isinstance(fields, dict):
        raise InputError("attn", fields, "expected null or an object with layers and num_heads")
    known = {f.name for f in dataclasses.fields(AttentionConfig)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise InputError("attn", ", ".join(unknown), f"unknown; known are {', '.join(sorted(known))}")
    return AttentionConfig(**fields)


def mom_tiny() -> MoMConfig:
    """Byte-level demonstration model: trains in about two minutes on two CPU cores."""
    return MoMConfig(
        vocab_size=264,
        hidden_size=128,
        num_hidden_layers=2,
        num_heads=2,
        head_dim=32,
        hidden_ratio=3,
        tie_word_embeddings=True,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
    )


def mom_340m() -> MoMConfig:
    """The published 340M model (380M in the paper): 24 layers, hidden size 1024, 4 heads of 256."""
    return MoMConfig(hidden_size=1024, hidden_ratio=3, tie_word_embeddings=True)


def mom_1_3b() -> MoMConfig:
    """The published 1.3B model: 24 layers, hidden size 2048, 4 heads of 256."""
    return MoMConfig(hidden_size=2048, hidden_ratio=4, tie_word_embeddings=True)


_SIZES = {"mom-tiny": mom_tiny, "mom-340m": mom_340m, "mom-1.3b": mom_1_3b}
# Options of a rule's own paper that are not the defaults above. Heads stay those of the preset, so that
# rules are compared at one size of state.
_OF_RULE: dict[str, dict[str, Any]] = {
    "linear_attention": {"feature_map": "elu", "norm_feature_map": True},
    "gsa": {"gate_logit_normalizer": 8},
    "rwkv7": {"gate_low_rank_dim": 128},
}


def _with_rule(size: Callable[[], MoMConfig], rule: MemoryRuleName) -> Callable[[], MoMConfig]:
    return lambda: dataclasses.replace(size(), memory_rule=rule, **_OF_RULE.get(rule, {}))


# A size by itself has the default rule; each other rule has a preset of every size: mom-340m-gla.
PRESETS: dict[str, Callable[[], MoMConfig]] = _SIZES | {
    f"{name}-{rule.replace('_', '-')}": _with_rule(size, rule)
    for name, size in _SIZES.items()
    for rule in MEMORY_RULES
    if rule != "gated_deltanet"
}


def preset_names() -> str:
    """All presets in one line of a help text."""
    rules = ", ".join(name.removeprefix("mom-tiny-") for name in PRESETS if name.startswith("mom-tiny-"))
    return f"{', '.join(_SIZES)}, or one of these with another memory rule, as mom-tiny-gla ({rules})"


def get_preset(name: str) -> MoMConfig:
    """The preset of that name; an unknown name raises `InputError` with the closest known ones."""
    if name not in PRESETS:
        close = difflib.get_close_matches(name, _SIZES) or difflib.get_close_matches(name, PRESETS) or list(_SIZES)
        raise InputError("preset", name, f"unknown; did you mean {' or '.join(close)}?")
    return PRESETS[name]()
