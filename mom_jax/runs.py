"""A run from outside: open it, train it, score it, and the files in which the results are.

Imports JAX; lm-evaluation-harness only where its tasks run.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import jax
from jax.sharding import Mesh
from rich.console import Console

from mom_jax.data.config import DataConfig
from mom_jax.data.loader import TokenWindows, eval_batches
from mom_jax.data.prepare import prepared
from mom_jax.data.shards import PreparedData
from mom_jax.data.tokenizers import load_tokenizer
from mom_jax.errors import InputError, named_as
from mom_jax.evals.perplexity import HeldOut, evaluate
from mom_jax.evals.results import KINDS, Evaluation, Tasks
from mom_jax.interop.published import is_published
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.paths import cache_folder, local_path, why_not_writable
from mom_jax.reports.markdown import write_report
from mom_jax.training import loop
from mom_jax.training.checkpoint import NEWEST, Choice, load_run
from mom_jax.training.config import MeshConfig, TrainConfig
from mom_jax.training.conversion import load_published
from mom_jax.training.extensions import Callback, Extensions, Logger, Loss, OwnTransformation
from mom_jax.training.log import time_left
from mom_jax.training.loop import Outcome
from mom_jax.training.processes import is_first
from mom_jax.training.run_places import written_back
from mom_jax.training.sharding import make_mesh, shard_batch
from mom_jax.training.sittings import now
from mom_jax.training.text import check_vocabulary
from mom_jax.typing import Batch

_ANEW = "train it again from an older checkpoint, or with a lower learning rate"
ANSWERS = "answers"  # folder in a run's of what the model has answered to tasks


def train(
    config: TrainConfig,
    *,
    callbacks: Sequence[Callback] = (),
    logger: Logger | None = None,
    optimizer: OwnTransformation | None = None,
    loss: Loss | None = None,
    batches: Iterator[Batch] | None = None,
    held_out: Callable[[], Iterable[Batch]] | None = None,
    console: Console | None = None,
) -> Outcome:
    """Trains (or resumes) a run, with parts of your own; docs/training.md shows each.

    Args:
        config: the run.
        callbacks: told of steps, evaluations and checkpoints; may ask the run to stop.
        logger: gets what the run logs, beside TensorBoard and ``metrics.jsonl``.
        optimizer: an Optax transformation, or a function of the config's schedule that returns one.
        loss: of (model, batch), what is minimised and scalars for the log.
        batches: training batches in the place of the config's data.
        held_out: makes the batches of an evaluation.
        console: where progress is shown; the terminal unless given.

    Raises:
        InputError, DivergedError, OSError: as `mom_jax.training.loop.train`.
    """
    own = Extensions(callbacks, () if logger is None else (logger,), optimizer, loss, batches, held_out)
    return loop.train(config, HeldOut(), console or Console(), own)


def train_and_report(config: TrainConfig, out: Console) -> Outcome:
    """Trains (or resumes) a run, then writes its report."""
    outcome = loop.train(config, HeldOut(), out)
    if not is_first():
        return outcome
    out.print(outcome.message + (f" ({time_left(outcome.seconds)})" if outcome.seconds else ""))
    if outcome.step:  # told to stop before the first step, it has nothing to report
        with written_back(config.run_dir, config.folder):
            out.print(f"report: {write_report(config.folder)}")
    return outcome


def all_devices() -> Mesh:
    """A mesh that spreads the batch over every device."""
    return make_mesh(MeshConfig())


def one_device() -> Mesh:
    """A mesh of the first device alone, for a batch of one row."""
    return make_mesh(MeshConfig(data=1), jax.devices()[:1])


class OpenedRun(NamedTuple):
    """A run's newest model."""

    config: TrainConfig
    model: MoMForCausalLM
    step: int


@contextmanager
def opened_run(run_dir: str, mesh: Mesh, choice: Choice = NEWEST) -> Iterator[OpenedRun]:
    """A run's model on ``mesh``, which is set while it is entered; a published model's folder is one at step 0.

    Args:
        run_dir: the run, or a published model's folder.
        mesh: where the parameters go.
        choice: which of the run's parameters; the newest ones unless given.

    Raises:
        InputError: no run there, no such checkpoint that can be read, or one whose parameters are not all finite.
    """
    folder = local_path(run_dir, "run")
    with named_as("run", "directory"):
        parts = _published(folder, mesh, choice) if is_published(folder) else load_run(folder, mesh, choice)
    with jax.set_mesh(mesh):
        yield OpenedRun(*parts)


def _published(folder: Path, mesh: Mesh, choice: Choice) -> tuple[TrainConfig, MoMForCausalLM, int]:
    choice.refuse(folder)
    return (*load_published(folder, mesh), 0)


class Scored(NamedTuple):
    """A model's held-out scores, and of what they are."""

    evaluation: Evaluation
    config: TrainConfig
    data: PreparedData


def evaluate_run(run_dir: str, *, choice: Choice = NEWEST, max_windows: int | None = None, **changes: int) -> Scored:
    """Scores a run's newest model on held-out text; writes nothing into its folder.

    Args:
        run_dir: the run, or a published model's folder.
        choice: which of the run's parameters; the newest ones unless given.
        max_windows: score about this many windows instead of all.
        changes: fields of the run's data config to replace (``sequence_length``, ``batch_size``).

    Raises:
        InputError: bad data, another tokenizer than the model's, a batch that does not divide over the devices, or a
            model whose loss is not finite.
    """
    mesh = all_devices()
    with opened_run(run_dir, mesh, choice) as opened:
        return score(opened, run_dir, mesh, lambda line: None, ema=choice.ema, max_windows=max_windows, **changes)


def score(
    opened: OpenedRun,
    run_dir: str,
    mesh: Mesh,
    report: Callable[[str], None],
    *,
    ema: bool = False,
    max_windows: int | None = None,
    **changes: int,
) -> Scored:
    """As `evaluate_run`, of a run opened on ``mesh``.

    ``report`` gets lines about the text before it is scored; ``ema`` says that the model is an average.
    """
    config, model, step = opened
    data_config = _data_of(config, changes)
    if data_config.batch_size % mesh.size:
        remedy = f"must be a multiple of the number of devices ({mesh.size})"
        raise InputError("batch_size", data_config.batch_size, remedy)
    check_vocabulary(config)
    data = prepared(data_config)
    for line in data.notes:
        report(line)
    batches = (shard_batch(batch, mesh) for batch in eval_batches(data, data_config, max_windows=max_windows))
    # Every held-out token is scored but the first of each document, which nothing predicts.
    bytes_per_token = data.held_out.text_bytes / (len(data.held_out) - data.held_out.documents)
    scores = evaluate(model, batches, bytes_per_token)
    if not math.isfinite(scores["loss"]):
        raise InputError("run", run_dir, f"its held-out loss at step {step} is {scores['loss']}; {_ANEW}")
    windows = len(TokenWindows(data.held_out, data_config.sequence_length, padded=True))
    about = {
        "step": step,
        "data": data_config.mixture or data_config.path,
        "text": data.fingerprint,
        "sequence_length": data_config.sequence_length,
        "windows": min(max_windows or windows, windows),
        "windows_in_all": windows,
        "date": now(),
    }
    if ema:
        about["ema"] = True
    return Scored(cast(Evaluation, about | scores), config, data)


def _data_of(config: TrainConfig, changes: dict[str, int]) -> DataConfig:
    """The run's data, with changes; prepared text goes into the user's own cache where the run's is another user's."""
    data_config = dataclasses.replace(config.data, **changes)
    if why_not_writable(local_path(data_config.cache_dir, "data.cache_dir")):
        data_config = dataclasses.replace(data_config, cache_dir=str(cache_folder()))
    return data_config


def evaluate_run_on_tasks(
    run_dir: str,
    names: Iterable[str],
    *,
    choice: Choice = NEWEST,
    include_path: str | None = None,
    limit: int | None = None,
    sequence_length: int | None = None,
    batch_size: int | None = None,
    answers: Path | None = None,
) -> Tasks:
    """Runs tasks on a run's newest model.

    Args:
        run_dir: the run, or a published model's folder.
        names: see `load_tasks`.
        choice: which of the run's parameters; the newest ones unless given.
        include_path: folder of further task files.
        limit: documents of each task.
        sequence_length: the longest input; as in training unless given.
        batch_size: rows of a batch; as in training unless given, rounded up to the number of devices.
        answers: folder in which answers are kept, so that the same call goes on where it was stopped; None keeps none.

    Raises:
        InputError: no checkpoint, an unknown task, data that is not here, or a tokenizer that is not the model's.
    """
    from mom_jax.evals.harness.evaluate import evaluate_tasks, fingerprint  # imports lm-evaluation-harness
    from mom_jax.evals.harness.model import HarnessModel
    from mom_jax.evals.harness.tasks import find_tasks, load_tasks

    if jax.process_count() > 1:
        raise InputError("tasks", ",".join(names), "run in one process; start it on a single machine")
    names = list(names)
    manager = find_tasks(names, include_path)
    mesh = all_devices()
    with opened_run(run_dir, mesh, choice) as (config, model, step):
        tokenizer = load_tokenizer(config.data.tokenizer)
        lm = HarnessModel(
            model,
            tokenizer,
            max_length=sequence_length or config.data.sequence_length,
            batch_size=-(-(batch_size or config.data.batch_size) // mesh.size) * mesh.size,
            place=lambda batch: shard_batch(batch, mesh),
        )
        tasks = load_tasks(names, manager, tokenizer, lm.max_length)
        kept = None if answers is None else answers / f"{step}-{fingerprint(lm)}"
        results = evaluate_tasks(lm, tasks.values(), limit, kept)
    about = {"step": step, "sequence_length": lm.max_length, "limit": limit, "lm_eval": results["lm_eval"]}
    return cast(Tasks, {kind: {n: {**about, **r} for n, r in results[kind].items()} for kind in KINDS})
