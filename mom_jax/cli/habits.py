"""Hints for options that a verb does not have: other programs' names for ours, and what is not an option at all."""

import difflib
from collections.abc import Collection

# Names of other trainers, and of other verbs, for the fields of ours; of several, those that the verb has.
_SYNONYMS = {
    "lr": "learning_rate",
    "max_lr": "learning_rate",
    "min_lr": "min_learning_rate_ratio",
    "wd": "weight_decay",
    "warmup": "warmup_steps",
    "warmup_iters": "warmup_steps",
    "lr_scheduler_type": "schedule",
    "scheduler": "schedule",
    "max_grad_norm": "clip_norm",
    "grad_clip": "clip_norm",
    "gradient_clip": "clip_norm",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "epochs": "steps",
    "num_epochs": "steps",
    "num_train_epochs": "steps",
    "max_steps": "steps",
    "num_steps": "steps",
    "train_steps": "steps",
    "iters": "steps",
    "max_iters": "steps",
    "iterations": "steps",
    "bs": "batch_size global_batch",
    "batch": "batch_size global_batch",
    "batch_size": "global_batch",
    "global_batch": "batch_size",
    "global_batch_size": "batch_size global_batch",
    "per_device_train_batch_size": "batch_size",
    "micro_batch_size": "gradient_accumulation",
    "grad_accum": "gradient_accumulation",
    "gradient_accumulation_steps": "gradient_accumulation",
    "gradient_checkpointing": "remat",
    "seq_len": "sequence_length",
    "sequence_length": "seq_len",
    "seq_length": "sequence_length seq_len",
    "max_seq_len": "sequence_length seq_len",
    "max_seq_length": "sequence_length seq_len",
    "block_size": "sequence_length seq_len",
    "context_length": "sequence_length seq_len",
    "max_length": "sequence_length seq_len",
    "data": "data.path",
    "dataset": "data.path",
    "dataset_name": "data.path",
    "train_file": "data.path",
    "validation_file": "data.held_out_path",
    "val_split": "data.held_out_fraction",
    "tokenizer_name": "tokenizer",
    "output": "run_dir",
    "output_dir": "run_dir",
    "out_dir": "run_dir",
    "save_dir": "run_dir",
    "logdir": "run_dir",
    "save_every": "checkpoint.every",
    "save_steps": "checkpoint.every",
    "save_interval": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "eval_interval": "eval_every",
    "eval_steps": "eval_every",
    "log_interval": "log_every",
    "logging_steps": "log_every",
    "wandb": "log",
    "report_to": "log",
    "optim": "optimizer.name",
    "opt": "optimizer.name",
    "ema": "optimizer.ema_decay",
    "finetune_from": "init_from",
    "dtype": "compute_dtype",
    "precision": "compute_dtype",
    "bf16": "compute_dtype",
    "fp16": "compute_dtype",
    "layers": "num_hidden_layers",
    "n_layer": "num_hidden_layers",
    "num_layers": "num_hidden_layers",
    "dim": "hidden_size",
    "d_model": "hidden_size",
    "n_embd": "hidden_size",
    "n_head": "num_heads",
    "heads": "num_heads",
    "memories": "num_memories",
    "top_k": "topk",
    "rule": "memory_rule",
    "max_tokens": "max_new_tokens",
    "length": "max_new_tokens",
    "temp": "temperature",
    "output_file": "out",
    "num_workers": "workers",
    "num_proc": "workers",
    "fsdp": "mesh.fsdp",
    "tp": "mesh.tensor",
    "master_addr": "processes.coordinator",
}
_NO_OPTION = {
    ("device", "gpu", "gpus", "cpu", "cuda", "tpu", "accelerator", "devices"): (
        "all devices that JAX sees are used; to choose, write JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES=0 "
        "before the command"
    ),
    ("resume", "resume_from_checkpoint", "resume_from"): "the same command resumes where a run stopped",
    ("config", "config_file"): "name a preset, and give what differs from it as options",
    ("model", "model_name", "model_path", "model_name_or_path", "checkpoint", "ckpt", "run", "preset"): (
        "the first argument names it, without an option"
    ),
    ("data.sequence_length", "data.batch_size", "data.seed", "sequence_length", "batch_size"): (
        "prepared shards serve any; it is an option of training"
    ),
    ("data.cache_dir", "cache_dir"): "OUT is where shards go",
    ("seed",): "nothing is drawn at random here",
    ("verbose", "debug", "quiet", "v"): "the amount of output is fixed",
}


def hint(option: str, known: Collection[str]) -> str:
    """What to write instead of an option (a field's name) that is not among the ``known`` dotted fields."""
    meant_fields = _SYNONYMS.get(option, "").split()
    close = _same(option, known) or [name for field in meant_fields for name in _same(field, known)]
    meant = [advice for names, advice in _NO_OPTION.items() if option in names]
    if meant and not close:
        return meant[0]
    close = close or _near(option, known)
    if close:
        return f"did you mean {' or '.join('--' + name.replace('_', '-') for name in close[:3])}?"
    return "see --help for all options"


def _same(option: str, known: Collection[str]) -> list[str]:
    return [option] if option in known else [name for name in known if option and name.endswith("." + option)]


def _near(option: str, known: Collection[str]) -> list[str]:
    last = {name.rpartition(".")[2]: name for name in reversed(list(known))}
    close = difflib.get_close_matches(option, known, n=2)
    close = close or [last[name] for name in difflib.get_close_matches(option.rpartition(".")[2], last, n=2)]
    begun = [name for part, name in last.items() if len(option) > 2 and part.startswith(option)]
    return close or begun
