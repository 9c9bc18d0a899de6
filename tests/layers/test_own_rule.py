"""The modules of docs/your-own-rule.md and docs/tutorials/layer.md, written to a folder outside of the package."""

import re
import runpy
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from support.compare import assert_close

from mom_jax.cli.main import main
from mom_jax.layers.mixer import MemoryMixer
from mom_jax.training.log import read_metrics

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = (DOCS / "your-own-rule.md", DOCS / "tutorials/layer.md")
BLOCK = re.compile(r"```python\n# (\w+)\.py\n(.*?)```", re.DOTALL)
MODULES = {name: text for page in PAGES for name, text in BLOCK.findall(page.read_text(encoding="utf-8"))}
RULES = {"my_rules": "SimpleGLA", "oja": "Oja"}
SMALL = ["--model.hidden-size", "16", "--model.num-hidden-layers", "1"]
SMALL += ["--model.head-dim", "8", "--model.intermediate-size", "16"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where somebody works, with the modules of the page and a text."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    (tmp_path / "text").mkdir()
    for number in range(4):
        (tmp_path / f"text/{number}.txt").write_text("to be or not to be " * 40, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("module", RULES)
def test_a_rule_is_short(module):
    """At most 60 lines."""
    assert len(MODULES[module].splitlines()) <= 60


@pytest.mark.parametrize("module", RULES)
def test_pieces_equal_the_whole(folder, module):
    """A mixture of one and a single memory of the other: pieces give what one pass gives, with gradients."""
    several = {} if module == "my_rules" else {"num_memories": None, "shared": False}
    mixer = MemoryMixer(16, rule=f"{module}:{RULES[module]}", num_heads=2, **several, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 9, 16))
    run = nnx.jit(lambda mixer, x, cache: mixer(x, cache=cache))
    whole = nnx.jit(nnx.grad(lambda mixer: ((y := mixer(x).y).sum(), y), has_aux=True))
    gradients, want = whole(mixer)
    cache, got = mixer.empty_cache(1, 2, jnp.float32), []
    for piece in (x[:, :7], x[:, 7:8], x[:, 8:]):
        out = run(mixer, piece, cache)
        cache = out.cache
        got.append(out.y)
    assert_close(jnp.concatenate(got, 1), want, 1e-5)
    assert all(jnp.isfinite(leaf).all() and jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradients["rule"]))


@pytest.mark.exhaustive
def test_on_the_command_line(folder, capsys):
    """It plans, trains, goes on and generates, by its name alone."""
    rule = ["--model.memory-rule", "my_rules:SimpleGLA", *SMALL]
    options = ["--model.rule-options", "gate_normalizer=8"]
    data = ["--data.path", "text", "--data.cache-dir", "shards", "--data.sequence-length", "32"]
    data += ["--data.batch-size", "2"]
    train = ["train", "mom-tiny", *rule, *options, *data, "--run-dir", "run", "--eval-windows", "2", "--log-every", "1"]
    assert main(["plan", "mom-tiny", *rule, *options]) == 0
    assert main([*train, "--steps", "2", "--checkpoint.every", "1"]) == 0
    assert main([*train, "--steps", "3"]) == 0
    assert [record["step"] for record in read_metrics(folder / "run") if "loss" in record] == [1, 2, 3]
    assert main(["generate", "run", "--prompt", "to be", "--max-new-tokens", "2"]) == 0


@pytest.mark.parametrize("module", ["nnx_model", "linen_model"])
def test_layers_in_models_of_other_people(folder, capsys, module):
    """The two examples run as they stand."""
    runpy.run_path(str(folder / f"{module}.py"))
    assert capsys.readouterr().out.strip() in ("(2, 10, 32) (1, 2, 10, 2) (2, 1, 32)", "(2, 10, 8)")
