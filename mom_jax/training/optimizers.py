"""The optimizers that a run may use, by name: each a dataclass of its options that makes its Optax transformation.

`make_optimizer` adds what they share: clipping, schedule and learning rates of groups. Importing this imports neither
JAX nor Optax.
"""

import dataclasses
import difflib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mom_jax.errors import InputError, in_a_line
from mom_jax.fields import Name, Range, check_fields, named_value
from mom_jax.importing import imported

if TYPE_CHECKING:
    import optax

Share = Annotated[float, Range(least=0, most=1)]
Beta = Annotated[float, Range(least=0, most=0.999999)]  # float32 makes 1 of what is nearer to it
Added = Annotated[float, Range(least=1e-30, most=1)]
_LARGEST_FACTOR = 1e4


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What every optimizer has: a name, a warm-up and a decaying learning rate, clipping, learning rates of groups."""

    name: Name = "adamw"
    """adamw, muon, lion, sgd, or package.module:function of your own, which takes the schedule and returns an Optax
    transformation."""
    learning_rate: Annotated[float, Range(above=0, most=100)] = 3e-4
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """After the warm-up: a cosine to the minimum, or wsd (warm-up, stable, then a linear decay)."""
    warmup_steps: Annotated[int, Range(least=0, below=2**31)] = 1024
    """Steps of linear warm-up from zero."""
    min_learning_rate_ratio: Share = 0.1
    """Final learning rate as a share of the peak."""
    decay_fraction: Share = 0.2
    """Share of all steps that the decay of wsd takes."""
    weight_decay: Annotated[float, Range(least=0, most=100)] = 0.01
    """Decoupled weight decay; not applied to norms, A_log, dt_bias, D and the router's bias."""
    clip_norm: Annotated[float, Range(above=0)] = 1.0
    """Largest global gradient norm."""
    rates: tuple[Name, ...] = ()
    """Learning rates of groups as shares of the learning rate, as in router=0.1 gates=2: router, gates, embeddings, or
    a pattern of parameters' names ('layers.mlp.*')."""
    ema_decay: Annotated[float, Range(above=0, most=0.999999)] | None = None
    """Keep a moving average of the parameters with this decay, which eval, generate and convert take with --ema."""

    def __post_init__(self):
        check_fields(self)
        if not isinstance(self, optimizer_named(self.name)):
            remedy = f"is an optimizer of its own: {optimizer_named(self.name).__name__}(...)"
            raise InputError("optimizer.name", self.name, remedy)
        self.named_rates()

    def named_rates(self) -> dict[str, float]:
        """``rates`` by group or pattern."""
        return dict(_named_rate(text) for text in self.rates)

    def transformation(self, rate: "optax.Schedule", decays: Any, matrices: Any) -> "optax.GradientTransformation":
        """The Optax transformation from clipped gradients to updates; moments are float32.

        Args:
            rate: learning rate by the number of updates made.
            decays: whether weight decay applies to each parameter, in a tree like theirs.
            matrices: whether each is a matrix of a product inside the blocks, or several on leading axes.
        """
        raise NotImplementedError


def _named_rate(text: str) -> tuple[str, float]:
    group, _, number = text.rpartition("=")
    try:
        factor = float(number)
    except ValueError:
        factor = -1.0
    if not group or not 0 <= factor <= _LARGEST_FACTOR:
        remedy = f"expected GROUP=FACTOR with a factor from 0 to {_LARGEST_FACTOR:g}, as in router=0.1"
        raise InputError("optimizer.rates", text, remedy)
    return group, factor


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """AdamW (arXiv 1711.05101), the recipe of the paper."""

    beta1: Beta = 0.9
    """Decay of the gradient's mean."""
    beta2: Beta = 0.95
    """Decay of the gradient's second moment."""
    eps: Added = 1e-8
    """Added to the root of the second moment."""

    def transformation(self, rate: "optax.Schedule", decays: Any, matrices: Any) -> "optax.GradientTransformation":
        """As `Optimizer.transformation`."""
        import optax

        return optax.adamw(
            rate,
            b1=self.beta1,
            b2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            mask=decays,
            mu_dtype="float32",
        )


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """Muon (arXiv 2502.16982) for matrices of the blocks, each layer's and memory's for itself; AdamW elsewhere.

    Elsewhere is: embeddings, output matrix, routers, convolutions, norms, biases. Updates of matrices are scaled to the
    size of AdamW's, so that one learning rate serves both.
    """

    name: Name = "muon"
    momentum: Beta = 0.95
    """Decay of the gradient's mean, of matrices."""
    newton_schulz_steps: Annotated[int, Range(least=1, most=100)] = 5
    """Steps of the iteration that makes an update orthogonal."""
    beta1: Beta = 0.9
    """Of AdamW: decay of the gradient's mean."""
    beta2: Beta = 0.95
    """Of AdamW: decay of the gradient's second moment."""
    eps: Added = 1e-8
    """Added to a matrix's norm, and to the root of AdamW's second moment."""

    def transformation(self, rate: "optax.Schedule", decays: Any, matrices: Any) -> "optax.GradientTransformation":
        """As `Optimizer.transformation`."""
        import jax
        import optax

        last_two = optax.contrib.MuonDimensionNumbers(-2, -1)
        muon = optax.contrib.muon(
            -1.0,  # updates without a sign and a learning rate, as scale_by_adam's
            ns_steps=self.newton_schulz_steps,
            beta=self.momentum,
            eps=self.eps,
            mu_dtype="float32",
            consistent_rms=0.2,  # of AdamW's updates, as measured in arXiv 2502.16982
            muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: last_two, params),
        )
        adam = optax.scale_by_adam(self.beta1, self.beta2, self.eps, mu_dtype="float32")
        labels = jax.tree.map(lambda is_matrix: "muon" if is_matrix else "adam", matrices)
        return optax.chain(
            optax.partition({"muon": muon, "adam": adam}, labels),
            optax.add_decayed_weights(self.weight_decay, decays),
            optax.scale_by_learning_rate(rate),
        )


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """Lion (arXiv 2302.06675): the sign of a momentum. It wants a learning rate 3 to 10 times lower than AdamW's."""

    name: Name = "lion"
    beta1: Beta = 0.9
    """How much of an update is momentum."""
    beta2: Beta = 0.99
    """Decay of the momentum."""

    def transformation(self, rate: "optax.Schedule", decays: Any, matrices: Any) -> "optax.GradientTransformation":
        """As `Optimizer.transformation`."""
        import optax

        decay = self.weight_decay
        return optax.lion(rate, self.beta1, self.beta2, mu_dtype="float32", weight_decay=decay, mask=decays)


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent with momentum."""

    name: Name = "sgd"
    momentum: Beta = 0.9
    """Decay of the summed gradients."""
    nesterov: bool = False
    """Look ahead along the momentum."""

    def transformation(self, rate: "optax.Schedule", decays: Any, matrices: Any) -> "optax.GradientTransformation":
        """As `Optimizer.transformation`."""
        import optax

        return optax.chain(
            optax.trace(self.momentum, self.nesterov),
            optax.add_decayed_weights(self.weight_decay, decays),
            optax.scale_by_learning_rate(rate),
        )


@dataclasses.dataclass(frozen=True)
class OwnOptimizer(Optimizer):
    """An optimizer from outside the package: ``function(schedule, **options)``, which sees to weight decay itself."""

    name: Name = "package.module:function"
    options: tuple[Name, ...] = ()
    """Further arguments of the function, as name=value with the value in JSON."""

    def __post_init__(self):
        super().__post_init__()
        self.named_options()

    def named_options(self) -> dict[str, Any]:
        """``options`` by name."""
        return dict(named_value("optimizer.options", text, "b1=0.9") for text in self.options)

    def transformation(self, rate: "optax.Schedule", decays: Any, matrices: Any) -> "optax.GradientTransformation":
        """As `Optimizer.transformation`.

        Raises:
            InputError: no such function, one that fails, or one that returns something else.
        """
        module, function = imported(self.name, "optimizer.name")
        if not callable(function):
            remedy = f"{module.__name__} has no function {self.name.partition(':')[2]}"
            raise InputError("optimizer.name", self.name, remedy)
        try:
            made: Any = function(rate, **self.named_options())
        except Exception as error:
            raise InputError("optimizer.name", self.name, f"the function failed with {in_a_line(error)}") from error
        if not (hasattr(made, "init") and hasattr(made, "update")):
            remedy = f"returned {type(made).__name__}, not an Optax transformation"
            raise InputError("optimizer.name", self.name, remedy)
        return made


OPTIMIZERS: dict[str, type[Optimizer]] = {cls.name: cls for cls in (AdamW, Muon, Lion, SGD)}


def optimizer_named(name: object) -> type[Optimizer]:
    """The class of an optimizer's options.

    Raises:
        InputError: no optimizer has this name.
    """
    if isinstance(name, str) and ":" in name:
        return OwnOptimizer
    if not isinstance(name, str) or name not in OPTIMIZERS:
        close = difflib.get_close_matches(str(name), OPTIMIZERS, n=1)
        known = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(OPTIMIZERS)}"
        raise InputError("optimizer.name", name, f"{known}, or package.module:function of your own")
    return OPTIMIZERS[name]


def with_name(optimizer: Optimizer, name: str) -> Optimizer:
    """The optimizer of that name with the values of ``optimizer`` that all have; its own fields as they come."""
    if name == optimizer.name:
        return optimizer
    shared = {field.name: getattr(optimizer, field.name) for field in dataclasses.fields(Optimizer)}
    return optimizer_named(name)(**{**shared, "name": name})
