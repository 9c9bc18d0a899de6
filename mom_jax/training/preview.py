"""What a run would be, read and write, found without writing anything."""

import jax

from mom_jax.data.loader import TrainLoader
from mom_jax.data.prepare import Foreseen, foresee
from mom_jax.data.remote import is_address
from mom_jax.paths import check_output_folder
from mom_jax.training.checkpoint import checkpoint_folder, latest_step, read_config
from mom_jax.training.config import CONFIG_FILE, TrainConfig, changes_between
from mom_jax.training.memory import check_memory, device_bytes, in_words
from mom_jax.training.mirror import check_address_of
from mom_jax.training.program import Program
from mom_jax.training.remote_run import RemoteRun
from mom_jax.training.sharding import check_fit, make_mesh
from mom_jax.training.text import check_vocabulary


def preview(config: TrainConfig) -> list[str]:
    """Lines that tell what `mom_jax.training.loop.train` would do with ``config``.

    Raises:
        InputError: what would end it before its first step, but for what only reading the text shows.
    """
    check_address_of(config)
    check_output_folder(config.folder, "run_dir")
    mesh = make_mesh(config.mesh)
    check_fit(config, mesh)
    check_vocabulary(config)
    data = foresee(config.data)
    if data.data is not None:
        TrainLoader(data.data, config.data)  # is there enough of it?
    program = Program(config, mesh)
    check_memory(config, program.abstract, mesh)
    return [*_sizes(program), *_tokens(config, data), *_beginning(config), *_written(program, data)]


def _sizes(program: Program) -> list[str]:
    state, mesh = program.abstract, program.mesh
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    own, rest = device_bytes(state.params), device_bytes((state.opt_state, state.ema))
    return [
        f"mesh: {shape} ({mesh.size} {mesh.devices.flat[0].device_kind})",
        f"parameters: {parameters:,}",
        f"memory of a device for parameters: {in_words(own)}; for the optimizer: {in_words(rest)}",
    ]


def _tokens(config: TrainConfig, data: Foreseen) -> list[str]:
    step = config.data.tokens_per_step
    lines = [f"tokens: {step:,} a step, {config.steps * step:,} in {config.steps:,} steps", *data.notes]
    if data.data is not None:
        lines.append(f"times through the text: {config.steps * step / len(data.data.train):.2f}")
    return lines


def _beginning(config: TrainConfig) -> list[str]:
    if is_address(config.run_dir):
        return _beginning_there(config)
    folder = checkpoint_folder(config.folder)
    step = latest_step(folder)
    if step is None:
        weights = "" if config.init_from is None else f" with the weights of {config.init_from}"
        return [f"begins anew in {config.run_dir}{weights}"]
    changes = changes_between(read_config(folder, step), config)
    return [f"resumes {config.run_dir} at step {step}", *([f"changed since: {', '.join(changes)}"] if changes else [])]


def _beginning_there(config: TrainConfig) -> list[str]:
    steps = RemoteRun(config.run_dir, config.folder).steps()
    begins = f"resumes {config.run_dir} at step {steps[-1]}" if steps else f"begins anew in {config.run_dir}"
    return [begins, f"what it writes is copied there from {config.folder}"]


def _written(program: Program, data: Foreseen) -> list[str]:
    config, folder = program.config, program.config.folder
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(program.abstract))
    every, keep = config.checkpoint.every, config.checkpoint.keep
    lines = [
        f"would write {folder / CONFIG_FILE}, metrics.jsonl, TensorBoard files and report.md beside it",
        f"would write {folder / 'checkpoints'}: {in_words(size)} every {every:,} steps, the newest {keep} are kept",
    ]
    if data.data is None:
        lines.append(f"would tokenise the text into {data.folder}")
    return lines
