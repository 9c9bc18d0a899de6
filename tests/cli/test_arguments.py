"""Bad arguments: one line with field, value and remedy, exit status 2, and JAX never loaded."""

import json
import os
import subprocess
import sys

import pytest

from mom_jax.cli.main import VERBS, main
from mom_jax.cli.train import parse_train, with_tokenizer_of_shards
from mom_jax.errors import InputError

LONG = 128 * "ä"  # 256 bytes
BAD = [
    ("trian", "verb=trian: unknown; did you mean train?"),
    ("train", "preset='': name one first"),
    ("train --steps 5", "preset='': name one first"),
    ("train mom-tinny", "preset=mom-tinny: unknown; did you mean mom-tiny?"),
    ("train mom-tiny extra", "argument=extra: unexpected"),
    ("train mom-tiny --stpes 5", "option=--stpes: unknown; did you mean --steps?"),
    ("train mom-tiny --stpes=5", "option=--stpes: unknown; did you mean --steps?"),
    ("train mom-tiny --topk 3", "option=--topk: unknown; did you mean --model.topk?"),
    ("train mom-tiny --qqqq 3", "option=--qqqq: unknown; see --help"),
    ("train mom-tiny --steps", "steps='': expected a whole number"),
    ("train mom-tiny --steps abc", "steps=abc: expected a whole number"),
    ("train mom-tiny --steps 1 2", "steps=1 2: expected a whole number, a single value"),
    ("train mom-tiny --max-minutes soon", "max_minutes=soon: expected a number or None"),
    ("train mom-tiny --data.batch-size=x", "data.batch_size=x: expected a whole number"),
    (
        "train mom-tiny --remat ful",
        "remat=ful: expected one of none, full, dots, recurrence, mixer; did you mean full?",
    ),
    ("train mom-tiny --model.shared-mem False", "model.shared_mem=False: expected no value"),
    ("train mom-tiny --steps -inf", "steps=-inf: expected a whole number"),
    ("generate r --prompt a --temperature -nan", "temperature=nan: must be a finite number"),
    ("train mom-tiny --steps -5", "steps=-5: must be at least 1"),
    ("train mom-tiny --model.topk 7", "topk=7: must lie between 1 and num_memories (4)"),
    ("train mom-tiny --model.topk 0", "topk=0: must lie between"),
    ("train mom-tiny --model.expand-v 0.3", "expand_v=0.3: head_dim (32) * expand_v must be a positive whole number"),
    ("train mom-tiny --gradient-accumulation 3", "gradient_accumulation=3: must divide data.batch_size"),
    ("train mom-tiny --mesh.fsdp 0", "mesh.fsdp=0: must be at least 1 and at most 1048576, or -1"),
    ("train mom-tiny --optimizer.beta1 2", "beta1=2.0: must be at least 0 and at most 0.999999"),
    ("eval", "run='': is missing"),
    ("eval one two", "argument=two: unexpected"),
    ("eval runs --max-windows 0", "max_windows=0: must be at least 1"),
    ("eval runs --tasks ,", "tasks=,: names no task"),
    ("eval runs --limit 3", "limit=3: goes only with --tasks"),
    ("eval runs --tasks piqa --max-windows 3", "max_windows=3: does not go with --tasks"),
    ("generate", "run='': is missing"),
    ("generate runs/x --prompt a --top-p 1.5", "top_p=1.5: must be greater than 0 and at most 1"),
    ("generate runs/x --prompt a --temperature -1", "temperature=-1.0: must be at least 0"),
    ("generate runs/x --prompt=", "prompt='': must not be empty"),
    ("generate runs/x", "--prompt='': is missing"),
    ("convert", "src='': is missing"),
    ("convert a", "dst='': is missing"),
    ("convert a b --dtype int8", "dtype=int8: expected one of float32, bfloat16, float16"),
    ("train mom-tiny --log wandb x", "log=wandb x: expected one of wandb, mlflow, or several separated by spaces"),
    ("train mom-tiny --log mlfow", "log=mlfow: expected one of wandb, mlflow; did you mean mlflow?, or several"),
    ("convert a b --max-shard-bytes 0", "max_shard_bytes=0: must be at least 1"),
    ("data prepar", "data=prepar: unknown; did you mean prepare?"),
    ("data prepare", "out='': is missing"),
    ("data prepare shards --shard 4/4", "shard=4/4: must be i/n with 0 <= i < n"),
    ("data prepare shards --data.held-out-fraction 2", "held_out_fraction=2.0: must be greater than 0 and below 1"),
    ("report", "paths='': give the folder of a run or a sweep"),
    ("report runs --oot x", "option=--oot: unknown; did you mean --out?"),
    ("report no-such-folder --out no/page.html", "paths="),
    ("plan", "preset='': name one first: mom-jax plan PRESET"),
    ("plan mom-tiny --model.topk 7", "topk=7: must lie between 1 and num_memories (4)"),
    ("plan mom-tiny --model.memores 7", "option=--model.memores: unknown; did you mean --model.num-memories"),
    ("train mom-tiny --lr 3", "option=--lr: unknown; did you mean --optimizer.learning-rate?"),
    ("train mom-tiny -lr 3", "option=-lr: unknown; did you mean --optimizer.learning-rate?"),
    ("train mom-tiny --batch_size=3", "option=--batch_size: unknown; did you mean --data.batch-size?"),
    ("train mom-tiny --epochs 3", "option=--epochs: unknown; did you mean --steps?"),
    ("train mom-tiny --learnin-rate 3", "option=--learnin-rate: unknown; did you mean --optimizer.learning-rate?"),
    ("train mom-tiny --device cpu", "option=--device: unknown; all devices that JAX sees are used; to choose"),
    ("train mom-tiny --resume", "option=--resume: unknown; the same command resumes where a run stopped"),
    ("eval r --seed 3", "option=--seed: unknown; nothing is drawn at random here"),
    ("eval --ckpt r", "option=--ckpt: unknown; the first argument names it"),
    ("generate r --prompt a --temp 3", "option=--temp: unknown; did you mean --temperature?"),
    ("generate r --prompt --foo", "option=--foo: unknown; see --help for all options"),
    ("generate r -p x", "option=-p: unknown; see --help for all options"),
    ("help trian", "verb=trian: unknown; did you mean train?"),
    ("plan mom-tny", "preset=mom-tny: unknown; did you mean mom-tiny?"),
    ("plan mom-tiny --length 0", "length=0: must be at least 1"),
    ("plan mom-tiny --seq-len 0", "length=0: must be at least 1"),
    ("plan mom-tiny --topology v9:2x2", "topology=v9:2x2: unknown; choose one of v5e or v6e:1x1, 2x2"),
    ("plan mom-tiny --topology h100:12", "topology=h100:12: unknown; choose one of v5e"),
    ("plan mom-tiny --global-batch 8", "option=--global-batch: goes with --topology"),
    ("plan mom-tiny --topology v5e:2x2 --beside single", "option=--beside: goes without --topology"),
    ("plan mom-tiny --topology v5e:2x2 --compile 0 --mesh.fsdp 3", "mesh=data -1 x fsdp 3"),
    ("plan mom-tiny --topology v5e:2x4 --compile 0 --mesh.tensor 8", "mesh.tensor=8: must divide model.num_heads (2)"),
    ("plan mom-tiny --topology v5e:2x4 --compile 0 --mesh.data 8 --global-batch 4", "mesh.data * mesh.fsdp=8: must"),
    ("plan mom-tiny --beside rnn", "baseline=rnn: choose one of single, expanded, equal-active, transformer"),
    ("eval nonsense://b/run", "run=nonsense://b/run: nonsense:// is no file system"),
    ("eval r --tasks a --include-path s3://b", "include_path=s3://b: s3:// addresses are not supported"),
    ("generate gs:/b/r --prompt a", "run=gs:/b/r: gs:// addresses are not supported"),
    ("generate r --prompt-file gs://b/r", "prompt_file=gs://b/r: gs:// addresses are not supported"),
    ("convert nonsense://b/r out", "src=nonsense://b/r: nonsense:// is no file system"),
    ("convert r gs://b/out", "dst=gs://b/out: gs:// addresses are not supported"),
    ("data prepare o --data.batch-size 3", "option=--data.batch-size: unknown; prepared shards serve any"),
    ("data prepare o --data.cache-dir c", "option=--data.cache-dir: unknown; OUT is where shards go"),
    ("compare --reference x --draws 3", "draws=3: goes only with --dtype bfloat16"),
    ("compare --reference x --dtype bfloat16 --tolerance 3", "tolerance=3.0: goes only with --dtype float32"),
    ("data prepare gs://b", "out=gs://b: gs:// addresses are not supported"),
    ("report gs://b", "paths=gs://b: gs:// addresses are not supported"),
    ("report . --out s3://b/page.html", "out=s3://b/page.html: s3:// addresses are not supported"),
    ("compare --reference gs://b", "reference=gs://b: gs:// addresses are not supported"),
    ("experiment mqar --out gs://b", "out=gs://b: gs:// addresses are not supported"),
    ("train mom-tiny --run-dir nonsense://b/r", "run_dir=nonsense://b/r: nonsense:// is no file system"),
    ("compare", "--reference='': is missing"),
    ("compare --reference x --tokens 80", "tokens=80: must be ROWSxTOKENS with at least 4 tokens"),
    ("compare --reference x --tokens 0x80", "tokens=0x80: must be ROWSxTOKENS"),
    ("compare --reference x --tolerance 0", "tolerance=0.0: must be greater than 0"),
    ("compare --reference x --draws 0", "draws=0: must be at least 1"),
    ("compare --reference x --dtype float16", "dtype=float16: expected one of float32, bfloat16; did you mean"),
    ("compare --reference x --dtype bfloat16 --kernels interpreter", "kernels=interpreter: is wrong in bfloat16"),
    ("experiment", "experiment='': give a name or --list"),
    ("experiment mqr", "experiment=mqr: unknown; did you mean mqar?"),
    ("experiment mqar --scale big", "scale=big: expected one of tiny, small, medium, paper"),
    ("experiment mqar --only pairs", "only=pairs: must be FIELD=VALUE"),
    ("experiment recall --scale paper --only model=mom", "only=model=mom: no point has it; choose one of MoM"),
    ("experiment recall --only rule=gla --dry-run", "only=rule=gla: no point has it; points have size, measure"),
    ("experiment mqar --scale medium", "scale=medium: mqar has tiny and small and paper"),
    ("experiment generation --scale small", "scale=small: generation has tiny and paper"),
    ("experiment mqar --shard 3/3", "shard=3/3: must be i/n with 0 <= i < n"),
    ("experiment mqar --plot", "out=runs/experiments/mqar-tiny: has no finished point to draw"),
    ("demo --data.tokenizer mistral", "option=--data.tokenizer: unknown"),
    ("generate r --prompt a --stop", "stop='': expected text, a single value each time"),
    ("generate r --prompt a --stop b --stop --seed 3", "stop='': expected text, a single value each time"),
    ("generate r --prompt a --stop b c", "stop=b c: expected text, a single value each time"),
    (f"experiment mqar --out {LONG}", f"out={LONG}: is too long for a file system; give a shorter name"),
    (f"experiment --list --out {LONG}", f"out={LONG}: is too long"),
    (f"report {LONG}", f"paths={LONG}: is too long"),
    (f"eval {LONG}", f"run={LONG}: is too long"),
    (f"convert a b/{LONG}/c", f"dst=b/{LONG}/c: is too long"),
    (f"data prepare {LONG}", f"out={LONG}: is too long"),
    (f"train mom-tiny --data.tokenizer {LONG}", f"tokenizer={LONG}: is too long"),
    (f"train mom-tiny --data.cache-dir {LONG}", f"cache_dir={LONG}: is too long"),
    (f"train mom-tiny --run-dir {LONG}", f"run_dir={LONG}: is too long"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[line for line, _ in BAD])
def test_bad_arguments_are_one_line(line, message, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaint(*line.split()).startswith("mom-jax: " + message)
    assert not list(tmp_path.iterdir())


def test_overrides_reach_their_fields():
    line = "mom-tiny --steps 7 --model.no-shared-mem --data.path=x.txt --optimizer.schedule wsd --max-minutes 1.5"
    config = parse_train([*line.split(), "--mesh.data", "2"])
    assert (config.steps, config.model.shared_mem, config.data.path) == (7, False, "x.txt")
    assert (config.optimizer.schedule, config.max_minutes, config.mesh.data) == ("wsd", 1.5, 2)
    assert config.model.hidden_size == 128  # the preset's


def test_prepared_data_brings_its_own_tokenizer(tmp_path, capsys):
    (tmp_path / "texts").mkdir()
    for number in range(4):
        (tmp_path / "texts" / f"{number}.txt").write_text("some words of a text\n" * 20, encoding="utf-8")
    shards, text = str(tmp_path / "shards"), str(tmp_path / "texts")
    command = ["data", "prepare", shards, "--data.path", text, "--data.held-out-fraction", "0.3", "--workers", "1"]
    assert main(command) == 0 and "shards written" in capsys.readouterr().out
    assert with_tokenizer_of_shards(parse_train(["mom-340m", "--data.path", shards]).run).data.tokenizer == "bytes"
    assert with_tokenizer_of_shards(parse_train(["mom-340m", "--data.path", text]).run).data.tokenizer == "mistral"


START_UP = [
    "--help",
    "--version",
    "train --help",
    "train mom-340m --help",
    "eval --help",
    "generate --help",
    "convert --help",
    "data --help",
    "data prepare --help",
    "compare --help",
    "demo --help",
    "experiment --help",
    "bench --help",
    "plan --help",
    "report --help",
    "help train",
    "help data prepare",
    "train mom-tiny --stpes 5",
    "generate x --prompt a --top-k 0",
]


def test_help_and_mistakes_do_not_load_jax():
    code = """
import json, sys
from mom_jax.cli.main import main
for line in json.loads(sys.argv[1]):
    try:
        main(line.split())
    except SystemExit:
        pass
    heavy = {"jax", "orbax", "grain", "matplotlib", "optax"} & set(sys.modules)
    if heavy:
        sys.exit(f"{line!r} loaded {sorted(heavy)}")
"""
    done = subprocess.run([sys.executable, "-c", code, json.dumps(START_UP)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [line for line in START_UP if "help" in line])
def test_every_help_shows_an_example(line, capsys):
    try:
        status = main(line.split())
    except SystemExit as error:
        status = error.code
    assert status in (0, None)
    shown = capsys.readouterr().out
    before = shown.partition("xample: mom-jax ")[0]
    assert before != shown and "show this help" not in before


@pytest.mark.parametrize(
    ("line", "usage"),
    [
        ("convert", "mom-jax convert [-h] [OPTIONS] SRC DST"),
        ("eval", "mom-jax eval [-h] [OPTIONS] RUN"),
        ("generate", "mom-jax generate [-h] [OPTIONS] RUN"),
        ("data prepare", "mom-jax data prepare [-h] [OPTIONS] OUT"),
        ("report", "mom-jax report [-h] PATH..."),
        ("bench", "mom-jax bench [-h] [TABLES]"),
        ("experiment", "mom-jax experiment [-h] [OPTIONS] [NAME]"),
        ("plan", "mom-jax plan PRESET [-h]"),
        ("train", "mom-jax train PRESET [-h]"),
    ],
)
def test_help_names_the_arguments(line, usage, capsys):
    assert main(["help", *line.split()]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: {usage}") and " STR " not in shown.splitlines()[0]


KEPT = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    "args",
    [
        ["train", "mom-tiny", "--run-dir", KEPT],
        ["eval", KEPT],
        ["convert", "r", KEPT],
        ["data", "prepare", KEPT],
        ["report", KEPT],
        ["generate", "r", "--prompt", KEPT],
    ],
    ids=lambda args: args[0],
)
def test_names_of_what_is_kept_and_prompts_are_utf8(args, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = complaint(*args)
    assert "udce9" in said and "is not UTF-8" in said and not list(tmp_path.iterdir())


def test_what_the_demo_would_refuse_is_not_offered(capsys):
    assert main(["demo", "--help"]) == 0
    assert "--data.tokenizer" not in (shown := capsys.readouterr().out) and "--data.path" in shown


@pytest.mark.parametrize("prompt", ["-foo", "- item", "-1"])
def test_a_text_may_begin_with_a_dash(prompt, complaint, tmp_path):
    assert "none: no such folder" in complaint("generate", tmp_path / "none", "--prompt", prompt)


def test_usage_names_every_verb(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {verb} " in shown for verb in VERBS)


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "mom_jax", "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("mom-jax ")


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--no-model.shared-mem", "--model.no-shared-mem"),
        ("--no-steps", "--steps"),
        ("--optimizer.no-learning-rate", "--optimizer.learning-rate"),
    ],
)
def test_what_is_no_switch_is_named_alone(option, meant):
    with pytest.raises(InputError, match=rf"^option={option}: unknown; did you mean {meant}\?") as error:
        parse_train(["mom-tiny", option])
    assert "arguments=" not in str(error.value)
    assert not parse_train(["mom-tiny", "--model.no-shared-mem"]).model.shared_mem
