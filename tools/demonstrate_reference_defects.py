# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Measures what is wrong in the PyTorch reference of MoM, beside this library on the same weights.

    pip install -e '.[parity]'
    python tools/demonstrate_reference_defects.py [--kernels interpreter|naive]

Prints the tables of docs/parity.md as Markdown, on a CPU in about ten minutes. The models are random and small; each
is saved here and loaded there. "Changed" means by more than 1e-5. Only what a table names is repaired in the reference;
its Triton kernels run interpreted, or with naive as plain PyTorch.
"""

import argparse
import contextlib
import functools
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from mom_jax import MoMConfig, MoMForCausalLM, load_balancing_loss, save_pretrained
from mom_jax.evals.compare.ours import Ours
from mom_jax.evals.reference import interpreter
from mom_jax.evals.reference.install import installed_versions
from mom_jax.models.config import AttentionConfig

Rows = list[tuple[str, str, str]]  # what was measured, reference, ours
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_heads": 2,
    "head_dim": 16,
    "intermediate_size": 32,
}
CHANGED = 1e-5


class Pair:
    """One random model, here and in the reference."""

    def __init__(self, folder: Path, router_scale: float = 1.0, **options: Any):
        self.config = MoMConfig(**SMALL | options)
        model = MoMForCausalLM(self.config, rngs=nnx.Rngs(0))
        keys = iter(jax.random.split(jax.random.key(1), 64))
        # Larger mixers than at the start of training, so that every part shows in the logits.
        grown = jax.tree.map(lambda p: p + 0.2 * jax.random.normal(next(keys), p.shape), nnx.state(model))
        nnx.update(model, grown)
        model.layers.attn.router.weight[...] *= router_scale
        save_pretrained(model, folder)
        self.folder, self.model, self.ours = folder, model, Ours(model)

    def reference(self) -> Any:
        """The reference's model with these weights."""
        from mom_jax.evals.reference.model import Reference

        return Reference(self.folder).model

    def tokens(self, *shape: int) -> np.ndarray:
        """Random ids."""
        return np.random.default_rng(2).integers(0, self.config.vocab_size, shape)

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """Ours."""
        return self.ours.forward(ids)["logits"]


@torch.no_grad()
def logits_of(reference: Any, ids: np.ndarray) -> np.ndarray:
    """The reference's logits, without a cache."""
    return reference(torch.as_tensor(ids), use_cache=False).logits.numpy()


def effect(logits: Callable[[np.ndarray], np.ndarray], ids: np.ndarray, row: int, token: int) -> np.ndarray:
    """Largest change of the logits of each token [B, T] when one token is another."""
    other = ids.copy()
    other[row, token] = (other[row, token] + 7) % SMALL["vocab_size"]
    return np.abs(logits(other) - logits(ids)).max(-1)


def earlier(logits: Callable[[np.ndarray], np.ndarray], ids: np.ndarray) -> str:
    """How many tokens of the first row change with its last one, and how much."""
    last = ids.shape[1] - 1
    before = effect(logits, ids, 0, last)[0, :last]
    return f"{int((before > CHANGED).sum())} of {last} (up to {before.max():.1g})"


def gap(one: np.ndarray, other: np.ndarray) -> str:
    """Largest distance of two arrays."""
    return f"{np.abs(one - other).max():.1g}"


def training_leak(folder: Path) -> Rows:
    """In training mode, the short convolutions of the reference run over all memories and rows as one sequence."""
    pair = Pair(folder)
    reference, one, two = pair.reference(), pair.tokens(1, 70), pair.tokens(2, 70)
    leaky = Ours(pair.model, reference_conv_leak=True)
    reference_logits = functools.partial(logits_of, reference)
    rows: Rows = []
    with interpreter.stable_sort():
        for mode in ("evaluation", "training"):
            reference.train(mode == "training")
            what = f"{mode}: tokens before the last one that change with it"
            rows.append((what, earlier(reference_logits, one), earlier(pair.logits, one)))
            what = f"{mode}: change of the second row's logits with the first row's last token"
            changes = [effect(side, two, 0, 69)[1].max() for side in (reference_logits, pair.logits)]
            rows.append((what, f"{changes[0]:.1g}", f"{changes[1]:.1g}"))
        training = reference_logits(two)
    return [
        *rows,
        ("training: distance of ours from the reference", "", gap(pair.logits(two), training)),
        ("the same with `reference_conv_leak=True` here", "", gap(leaky.forward(two)["logits"], training)),
    ]


def unstable_sort(folder: Path) -> Rows:
    """Tokens are sorted by memory with a sort that may reorder equal keys; time is lost within each memory."""
    pair = Pair(folder)
    ids, reference_logits = pair.tokens(1, 70), functools.partial(logits_of, pair.reference())
    keys = torch.as_tensor(pair.tokens(160) % 4)
    moved = int((keys.argsort() != torch.sort(keys, stable=True).indices).sum())
    unpatched, unpatched_change = reference_logits(ids), earlier(reference_logits, ids)
    with interpreter.stable_sort():
        stable, stable_change = reference_logits(ids), earlier(reference_logits, ids)
    what = "evaluation: tokens before the last one that change with it"
    return [
        ("places where argsort of 160 keys in 0..3 differs from a stable sort", str(moved), "sorts nothing"),
        (what, unpatched_change, earlier(pair.logits, ids)),
        ("the same with the sort made stable", stable_change, ""),
        ("change of the logits when the sort is made stable", gap(unpatched, stable), ""),
        ("their largest value", f"{np.abs(stable).max():.2g}", ""),
        ("distance of ours from the reference with a stable sort", "", gap(pair.logits(ids), stable)),
    ]


def zero_weights(folder: Path) -> Rows:
    """A routing weight that underflows to 0 counts as "not chosen" in one place and as chosen in another."""
    rows: Rows = []
    for scale in (1, 100):
        pair = Pair(folder / str(scale), router_scale=scale)
        reference, ids = pair.reference(), pair.tokens(1, 40)
        with interpreter.stable_sort():
            expected, changes = logits_of(reference, ids), earlier(functools.partial(logits_of, reference), ids)
            stepped = gap_or_error(functools.partial(steps_of, reference, ids), expected)
        record = pair.ours.forward(ids)
        second = np.sort(np.asarray(jax.nn.softmax(record["router/0"])), -1)[..., -2]
        zeros, steps = str(int((second == 0).sum())), pair.ours.decode(ids, 1)["decode/steps"]
        name = f"router weights x {scale}"
        rows += [
            (f"{name}: tokens whose second weight is 0", zeros, zeros),
            (f"{name}: tokens before the last one that change with it", changes, earlier(pair.logits, ids)),
            (f"{name}: token by token, distance from all at once", stepped, gap(steps, record["logits"][:, 1:])),
            (f"{name}: distance of ours from the reference", "", gap(record["logits"], expected)),
        ]
    return rows


@torch.no_grad()
def steps_of(reference: Any, ids: np.ndarray) -> np.ndarray:
    """The reference's logits token by token, with its cache."""
    cache, logits = None, []
    for t in range(ids.shape[1]):
        out = reference(torch.as_tensor(ids[:, t : t + 1]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits.numpy())
    return np.concatenate(logits, 1)


def gap_or_error(call: Callable[[], np.ndarray], expected: np.ndarray) -> str:
    """Distance of what ``call`` returns from ``wanted``, or the error it raises."""
    try:
        return gap(call(), expected)
    except Exception as error:  # noqa: BLE001 (whatever it raises is the finding)
        first = (str(error).strip().splitlines() or [""])[0].replace("`", "")
        return f"{type(error).__name__}: {first if len(first) < 70 else first[:67] + '...'}"


def hybrid(folder: Path) -> Rows:
    """MoM layers with softmax-attention layers between them."""
    from mom_jax.evals.reference import operators

    pair = Pair(folder, num_hidden_layers=2, attn=AttentionConfig(layers=(1,), num_heads=2))
    ids = pair.tokens(2, 40)
    our_logits = pair.logits(ids)

    def forward():
        return logits_of(pair.reference(), ids)

    plain = gap_or_error(forward, our_logits)
    with operators.with_attention():
        with_attention = gap_or_error(forward, our_logits)
        with operators.repaired_hybrid(pair.config.num_memories), interpreter.stable_sort():
            repaired = gap_or_error(forward, our_logits)
    return [
        ("forward pass without flash-attn", plain, "runs"),
        ("forward pass with a working `flash_attn_func`", with_attention, "runs"),
        ("both repaired, and the sort stable: distance of ours", "", repaired),
    ]


def continuation(folder: Path) -> Rows:
    """Reading several tokens into a cache that already holds some."""
    pair = Pair(folder, num_hidden_layers=2)
    reference, rows = pair.reference(), []
    for count, grad in ((1, False), (1, True), (2, False), (3, False), (8, False), (70, False)):
        ids = pair.tokens(1, 20 + count)
        with interpreter.stable_sort():
            full = logits_of(reference, ids)[:, 20:]
            reference_gap = gap_or_error(functools.partial(continued, reference, ids, 20, grad), full)
        cache = pair.model(jnp.asarray(ids[:, :20]), cache=pair.model.init_cache(1)).cache
        our_logits = np.asarray(pair.model(jnp.asarray(ids[:, 20:]), cache=cache).logits)
        what = f"20 tokens, then {count} more{', with autograd on' if grad else ''}: distance from all at once"
        rows.append((what, reference_gap, gap(our_logits, pair.logits(ids)[:, 20:])))
    return rows


def continued(reference: Any, ids: np.ndarray, begin: int, grad: bool) -> np.ndarray:
    """The reference's logits of the tokens from ``begin`` on, read at once behind those before."""
    with torch.no_grad():
        cache = reference(torch.as_tensor(ids[:, :begin]), use_cache=True).past_key_values
    with torch.set_grad_enabled(grad):
        return reference(torch.as_tensor(ids[:, begin:]), past_key_values=cache, use_cache=True).logits.detach().numpy()


def sequence_length(folder: Path) -> Rows:
    """How many tokens the cache says that it has seen."""
    pair = Pair(folder)
    reference, ids = pair.reference(), torch.as_tensor(pair.tokens(1, 21))
    with interpreter.stable_sort(), torch.no_grad():
        cache = reference(ids[:, :20], use_cache=True).past_key_values
        first = int(cache.get_seq_length())
        cache = reference(ids[:, 20:], past_key_values=cache, use_cache=True).past_key_values
    before: Any = pair.model(jnp.asarray(ids[:, :20]), cache=pair.model.init_cache(1)).cache
    after: Any = pair.model(jnp.asarray(ids[:, 20:]), cache=before).cache
    ours = [str(int(cache.memory.length[0, 0])) for cache in (before, after)]
    return [
        ("`get_seq_length()` after 20 tokens", str(first), ours[0]),
        ("after one more", str(int(cache.get_seq_length())), ours[1]),
    ]


def packed_documents(folder: Path) -> Rows:
    """Documents behind each other in one row: the auxiliary loss counts the padding that they are unpacked into."""
    pair = Pair(folder)
    reference, ids = pair.reference(), pair.tokens(1, 43)
    bounds, mask = torch.tensor([0, 30, 43]), torch.ones(2, 30, dtype=torch.long)
    rows = torch.zeros(2, 30, dtype=torch.long)
    rows[0], rows[1, 17:], mask[1, :17] = torch.as_tensor(ids[0, :30]), torch.as_tensor(ids[0, 30:]), 0
    tokens = torch.as_tensor(ids)
    with interpreter.stable_sort(), torch.no_grad():
        packed = reference(tokens, cu_seqlens=bounds, labels=tokens)
        padded = reference(rows, attention_mask=mask, labels=rows.masked_fill(mask == 0, -100))
    documents = jnp.asarray(np.arange(43) >= 30, jnp.int32)[None]
    output = pair.model(jnp.asarray(ids), segment_ids=documents)
    aux = load_balancing_loss(output.router_logits, pair.config.topk)
    alone = pair.model(jnp.asarray(rows.numpy()), attention_mask=jnp.asarray(mask.numpy()))
    aux_alone = load_balancing_loss(alone.router_logits, pair.config.topk, jnp.asarray(mask.numpy()))
    return [
        ("auxiliary loss of two documents in one row", f"{float(packed.aux_loss):.4f}", f"{float(aux):.4f}"),
        ("of the same documents in two rows with padding", f"{float(padded.aux_loss):.4f}", f"{float(aux_alone):.4f}"),
    ]


STUDIES = (training_leak, unstable_sort, zero_weights, hybrid, continuation, sequence_length, packed_documents)


def main() -> None:
    """Runs all studies and prints them."""
    parser = argparse.ArgumentParser(description="Measures what is wrong in the PyTorch reference of MoM.")
    parser.add_argument("--kernels", choices=("interpreter", "naive"), default="interpreter")
    kernels = parser.parse_args().kernels
    versions = ", ".join(f"{package} {version}" for package, version in installed_versions().items())
    interpreter.enable()
    from mom_jax.evals.reference.operators import naive_operators

    warnings.filterwarnings("ignore", module="fla")
    print(f"{versions}; {kernels} kernels on a CPU", flush=True)
    run_with = naive_operators() if kernels == "naive" else contextlib.nullcontext()
    with run_with, tempfile.TemporaryDirectory() as folder:
        for study in STUDIES:
            print(f"\n**{study.__name__.replace('_', ' ').capitalize()}.** {study.__doc__}\n")
            print("| measured | reference | ours |\n|---|---|---|")
            for row in study(Path(folder) / study.__name__):
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
