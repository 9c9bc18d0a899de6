"""The card of a published model: what it is, what it was trained on, what it scored, how to load it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mom_jax import __version__
from mom_jax.errors import is_installed
from mom_jax.evals.results import read_evaluations, read_tasks
from mom_jax.models.accounting import account, total
from mom_jax.models.config import MoMConfig
from mom_jax.reports.markdown import curves
from mom_jax.reports.records import Records, read_records
from mom_jax.reports.tables import Table, evaluation_tables, task_tables
from mom_jax.reports.words import describe_model
from mom_jax.training.config import TrainConfig

_USE = """\
## Use

In JAX, with mom-jax:

```sh
mom-jax pull {repo} {folder}
mom-jax generate {folder} --prompt 'Once'
```

```python
from mom_jax import load_pretrained

model = load_pretrained("{folder}")
```

In PyTorch, with flash-linear-attention:

```python
import fla  # registers the model
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
```
"""
_CITE = """\
## Citation

```bibtex
@inproceedings{du2026mom,
  title     = {{MoM}: Linear Sequence Modeling with Mixture-of-Memories},
  author    = {Du, Jusen and Sun, Weigao and Lan, Disen and Hu, Jiaxi and Cheng, Yu},
  booktitle = {International Conference on Learning Representations},
  year      = {2026},
  note      = {arXiv:2502.13685},
}
```
"""


def write_card(
    folder: Path, repo: str, licence: str, run_dir: Path, config: TrainConfig | None, model: MoMConfig
) -> Path:
    """Writes ``README.md`` into ``folder``, with pictures of the curves beside it where matplotlib is installed.

    Args:
        folder: holds what is published.
        repo: ``owner/name``.
        licence: an identifier that the hub knows, such as apache-2.0.
        run_dir: what was logged and scored.
        config: of the run; None for a published model.
        model: its configuration.
    """
    records = read_records(run_dir, _silent) if config is not None else Records([], [])
    lines = [*_head(licence, config, model), f"# {repo.partition('/')[2]}", "", *_facts(config, model, records)]
    lines += [_USE.format(repo=repo, folder=f"runs/{repo.partition('/')[2]}"), *_scores(run_dir)]
    if config is not None and records and is_installed("matplotlib"):
        lines += [*curves(config, records, folder), ""]
    shown = json.dumps((model if config is None else config).to_dict(), indent=2)
    lines += ["## Configuration", "", "```json", shown, "```", "", _CITE]
    path = folder / "README.md"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _silent(complaint: str) -> None:
    """What is damaged in the logs is no matter of the card; `mom-jax report` says it."""


def _head(licence: str, config: TrainConfig | None, model: MoMConfig) -> list[str]:
    tags = ["linear-attention", "jax", "flash-linear-attention", "mixture-of-memories" if model.mixture else "mom-jax"]
    fields: dict[str, Any] = {"license": licence, "library_name": "mom-jax", "pipeline_tag": "text-generation"}
    fields["tags"] = tags
    if config is not None and config.data.path.startswith("hf:"):
        fields["datasets"] = [config.data.path.removeprefix("hf:").partition(":")[0]]
    return ["---", *(f"{name}: {json.dumps(value)}" for name, value in fields.items()), "---", ""]


def _facts(config: TrainConfig | None, model: MoMConfig, records: Records) -> list[str]:
    cost = total(account(model, 2048))
    rows = [
        ["model", describe_model(model)],
        ["parameters", f"{cost.parameters:,}, of which a token uses {cost.activated:,}"],
        ["state of one sequence", f"{cost.state_bytes:,} bytes"],
    ]
    if config is not None:
        rows.append(["text", f"`{Path(config.data.path).name}`, tokenizer `{Path(config.data.tokenizer).name}`"])
    if config is not None and records:
        steps = records.training[-1]["step"]
        tokens = steps * config.data.tokens_per_step
        rows += [["trained", f"{steps:,} steps, {tokens:,} tokens"]]
        rows += [["last training loss", f"{records.training[-1]['lm_loss']:.4f} nats per token"]]
    rows.append(["made with", f"mom-jax {__version__}"])
    about = "A Mixture-of-Memories (MoM, arXiv 2502.13685) language model" if model.mixture else "A language model"
    return [f"{about}, trained with mom-jax.", "", *Table("", ["", ""], rows).markdown()]


def _scores(run_dir: Path) -> Sequence[str]:
    evaluations = read_evaluations(run_dir, _silent)
    tables = [*(evaluation_tables(evaluations) if evaluations else []), *task_tables(read_tasks(run_dir, _silent))]
    return ["## Scores", "", *(line for table in tables for line in table.markdown())] if tables else []
