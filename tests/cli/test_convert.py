"""``mom-jax convert`` both ways, and what the other verbs do with the result."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx
from goldens.read import parameters_by_name
from safetensors.numpy import load_file
from support.parameters import random_model

from mom_jax import MoMConfig, load_pretrained, save_pretrained
from mom_jax.cli.main import main
from mom_jax.models.structure import build_model
from mom_jax.runs import one_device
from mom_jax.training.checkpoint import load_run
from mom_jax.training.log import read_metrics


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small byte model as the PyTorch library writes it."""
    folder = tmp_path_factory.mktemp("models") / "published"
    sizes = {"vocab_size": 264, "hidden_size": 32, "num_hidden_layers": 1, "num_heads": 2, "head_dim": 16}
    config = MoMConfig(**sizes, hidden_ratio=3, intermediate_size=64, tie_word_embeddings=True)
    save_pretrained(build_model(config, 1), folder)
    return folder


@pytest.fixture(scope="module")
def run(published: Path) -> Path:
    """The same as a run."""
    folder = published.parent / "run"
    assert main(["convert", str(published), str(folder), "--tokenizer", "bytes"]) == 0
    return folder


def test_there_and_back(published, run, tmp_path):
    """The tensors come back bit for bit, and the tokenizer by its name."""
    assert main(["convert", str(run), str(tmp_path / "back")]) == 0
    assert (tmp_path / "back/model.safetensors").read_bytes() == (published / "model.safetensors").read_bytes()
    assert load_pretrained(tmp_path / "back").config == load_pretrained(published).config
    assert main(["convert", str(tmp_path / "back"), str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again/config.json").read_text(encoding="utf-8"))["data"]["tokenizer"] == "bytes"


def test_dtype_and_shards(run, tmp_path):
    """Both reach the files."""
    options = ["--dtype", "float16", "--max-shard-bytes", "20000"]
    assert main(["convert", str(run), str(tmp_path / "short"), *options]) == 0
    files = sorted((tmp_path / "short").glob("*.safetensors"))
    assert len(files) > 1
    assert all(values.dtype == np.float16 for path in files for values in load_file(path).values())


def test_generate(run, capsys):
    """The run continues a prompt."""
    assert main(["generate", str(run), "--prompt", "abc", "--max-new-tokens", "2"]) == 0
    assert capsys.readouterr().out.startswith("abc")


def test_eval_of_a_published_folder(run, tmp_path, capsys):
    """It serves as a run; there is no report, for nothing was trained."""
    assert main(["convert", str(run), str(tmp_path / "back")]) == 0
    assert main(["eval", str(tmp_path / "back"), "--sequence-length", "32", "--max-windows", "8"]) == 0
    assert "published model:" in capsys.readouterr().out
    assert (tmp_path / "back/eval.json").is_file() and not (tmp_path / "back/report.md").exists()


def test_training_starts_from_the_weights(published, tiny_default_rule, tmp_path, capsys):
    """Steps too small to move a weight leave them as they were; another model is refused."""
    assert main(["convert", str(published), str(tmp_path / "run"), "--tokenizer", "bytes"]) == 0
    options = [*tiny_default_rule, "--run-dir", str(tmp_path / "run"), "--steps", "2"]
    options += ["--optimizer.learning-rate", "1e-30"]
    assert main(["train", "mom-tiny", *options, "--model.topk", "1"]) == 2
    assert "another config: model.topk (was 2, now 1)" in capsys.readouterr().err
    assert main(["train", "mom-tiny", *options]) == 0
    assert f"starting from the weights in {tmp_path / 'run'}" in capsys.readouterr().out
    assert [record["step"] for record in read_metrics(tmp_path / "run") if "loss" in record] == [1, 2]
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "trained")]) == 0
    before, after = (parameters_by_name(nnx.state(load_pretrained(f))) for f in (published, tmp_path / "trained"))
    assert all(np.allclose(after[name], values, rtol=0, atol=1e-6) for name, values in before.items())
    assert main(["train", "mom-tiny", *options]) == 0
    assert "already trained to step 2" in capsys.readouterr().out


def test_tokenizer_files_travel(published, tmp_path):
    """A published model's own files are copied into the run, and from there into the next folder."""
    source = tmp_path / "source"
    source.mkdir()
    for path in published.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    words = {f"w{i}": i for i in range(200)} | {"</s>": 230}  # fewer than the model's rows, and with holes
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0")).save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text('{"eos_token": "</s>"}', encoding="utf-8")
    assert main(["convert", str(source), str(tmp_path / "run")]) == 0
    (source / "tokenizer.json").unlink()
    assert json.loads((tmp_path / "run/config.json").read_text(encoding="utf-8"))["data"]["tokenizer"] == str(
        tmp_path / "run/tokenizer"
    )
    assert main(["generate", str(tmp_path / "run"), "--prompt", "w7", "--max-new-tokens", "2"]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in (tmp_path / "back").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("{published} {out}", "tokenizer='': {published} holds none; name it with --tokenizer"),
        ("{published} {published}", "dst={published}: exists and is not an empty folder"),
        ("{published} {out} --tokenizer {missing}.json", "tokenizer={missing}.json: no such file"),
        ("{run} {run}/config.json/x", "dst={run}/config.json/x: cannot be written to ({run}/config.json is a file)"),
        ("{missing} {out}", "src={missing}: no such folder"),
        ("{run} {out} --tokenizer {missing}.json", "tokenizer={missing}.json: no such file; name"),
        ("{published} {out} --dtype float16", "dst={out}: would be a run: --dtype and --max-shard-bytes are for"),
        ("{published} {out} --step 3", "step=3: is of runs; {published} is a published model"),
        ("{published} {out} --ema", "ema=True: is of runs; {published} is a published model"),
        ("{run}/checkpoints {out}", "src={run}/checkpoints: holds no checkpoint"),
    ],
)
def test_mistakes_are_one_line(arguments, message, published, run, tmp_path, complaint):
    """And nothing is written."""
    names = {"published": published, "run": run, "out": tmp_path / "out", "missing": tmp_path / "missing"}
    assert complaint("convert", *arguments.format(**names).split()).startswith("mom-jax: " + message.format(**names))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("source", ["published", "run"])
def test_another_vocabulary(source, published, run, tmp_path, complaint):
    """A tokenizer with more tokens than the model has rows, there and back."""
    folder = {"published": published, "run": run}[source]
    words = tmp_path / "words.json"
    vocabulary = {f"w{i}": i for i in range(300)} | {"</s>": 300}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0")).save(str(words))
    error = complaint("convert", folder, tmp_path / "out", "--tokenizer", words)
    assert f"tokenizer={words}: has 301 tokens but the model 264 rows (vocab_size); name the model's own" in error
    assert list(tmp_path.iterdir()) == [words]


@pytest.fixture(scope="module")
def single(published: Path) -> Path:
    """A model of single memories, as the PyTorch library writes it, with parameters that make every part matter."""
    folder = published.parent / "single"
    config = dataclasses.replace(load_pretrained(published).config, mixture=False)
    save_pretrained(random_model(config), folder)
    return folder


def logits_of(folder: Path):
    """Of a run or a published model, and the model."""
    model = load_run(folder, one_device())[1] if (folder / "checkpoints").exists() else load_pretrained(folder)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 264, (2, 5)))
    return np.asarray(jax.jit(lambda ids: model(ids).logits)(ids)), model


def test_a_mixture_begins_as_its_model(single, tmp_path, capsys, complaint):
    """Without noise its logits, with and without a shared memory; with noise the shared memory is still the same."""
    how = [str(single), "--tokenizer", "bytes", "--from", "gated_deltanet", "--to", "mom"]
    want, source = logits_of(single)
    for name, options in {"shared": [], "routed": ["--no-shared-mem", "--num-memories", "3"]}.items():
        assert main(["convert", *how, str(tmp_path / name), "--noise", "0", *options]) == 0
        got, mixture = logits_of(tmp_path / name)
        np.testing.assert_allclose(got, want, atol=1e-4)
        assert mixture.config.mixture and not np.asarray(mixture.layers.attn.router.weight[...]).any()
    assert main(["convert", str(tmp_path / "routed"), str(tmp_path / "again")]) == 0
    np.testing.assert_array_equal(logits_of(tmp_path / "again")[0], got)
    error = complaint("convert", tmp_path / "shared", tmp_path / "no")
    assert re.search(r"rule_options=norm_eps=.*--to mom --no-shared-mem", error)
    assert main(["convert", *how, str(tmp_path / "noisy")]) == 0
    assert "train it on with mom-jax train --config" in capsys.readouterr().out
    noisy = load_run(tmp_path / "noisy", one_device())[1]
    before, after = (nnx.to_pure_dict(nnx.state(model)) for model in (source, noisy))
    for name in ("k_proj", "v_proj", "a_proj", "b_proj"):
        one, all_of = (np.asarray(params["layers"]["attn"]["rule"][name]) for params in (before, after))
        np.testing.assert_array_equal(all_of[:, -1], one[:, 0])
        assert np.std(all_of[:, :4] - one) == pytest.approx(0.01 * np.std(one), rel=0.2)
    assert "from=gla: " in complaint("convert", *how[:3], "--from", "gla", "--to", "mom", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    error = complaint("convert", *how, "--topk", "5", tmp_path / "other")
    assert "topk=5: must lie between 1 and num_memories (4)" in error


@pytest.mark.exhaustive
def test_a_mixture_is_trained_on(single, tmp_path):
    """By the command that converting shows: it starts from these weights, with the loss that they have."""
    text, run = tmp_path / "text.txt", tmp_path / "mixture"
    text.write_text("one two three four five " * 200, encoding="utf-8")
    assert main(["convert", str(single), str(run), "--tokenizer", "bytes", "--to", "mom"]) == 0
    options = ["--data.path", str(text), "--steps", "2", "--log-every", "1", "--data.sequence-length", "32"]
    assert main(["train", "--config", str(run / "config.json"), *options, "--data.batch-size", "2"]) == 0
    assert [record["step"] for record in read_metrics(run) if "loss" in record] == [1, 2]


def test_inspect_of_a_published_folder(published, run, tmp_path, capsys):
    """A page beside the weights or where it is wanted, and a table."""
    (tmp_path / "other.txt").write_text("another text\n", encoding="utf-8")
    out = tmp_path / "pages/look.html"
    line = ["inspect", str(run), "--text", "to be or not", "--against", str(tmp_path / "other.txt"), "--out", str(out)]
    assert main(line) == 0
    printed = capsys.readouterr().out
    assert f"page: {out}" in printed and "half-life" in printed and "13 tokens" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "text='': give either --text TEXT or --file FILE"),
        ("--text a", "text='a': has fewer than two tokens"),
        ("--file {run}/none", "file={run}/none: cannot be read"),
        ("--text ab --out {run}/page.pdf", "must be the name of a page"),
        ("--text ab --out {run}/config.json/page.html", "out={run}/config.json: cannot be written to"),
    ],
)
def test_mistakes_of_inspect_are_one_line(options, message, run, complaint):
    before = sorted(run.iterdir())
    assert message.format(run=run) in complaint("inspect", run, *options.format(run=run).split())
    assert sorted(run.iterdir()) == before
