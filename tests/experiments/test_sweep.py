"""Sweeps: nothing twice, nothing lost, shards apart; and the command around them."""

import dataclasses
import json
import math

import mom_jax.experiments.command as command
import mom_jax.experiments.dry_run as dry_run
import pytest
from matplotlib.figure import Figure
from mom_jax.experiments.common.text import run_folder
from mom_jax.experiments.registry import EXPERIMENTS, SCALES, Experiment, get_experiment
from mom_jax.experiments.sweep import belonging, missing, read_records, run_sweep

from mom_jax.cli.config_file import read_config
from mom_jax.cli.main import main
from mom_jax.errors import InputError
from mom_jax.training.config import TrainConfig

POINTS = [{"size": size, "seed": seed} for seed in range(2) for size in (1, 2, 3)]


class Toy:
    """An experiment that squares, counts its runs and can be killed."""

    def __init__(self, killed_at=None):
        self.ran, self.killed_at = [], killed_at

    def run(self, point, models):
        if len(self.ran) == self.killed_at:
            raise KeyboardInterrupt
        self.ran.append(point)
        return {"square": float(point["size"] ** 2)}

    @property
    def experiment(self):
        """As a module offers it."""
        return Experiment(lambda scale: POINTS, self.run, self.plot, self.table)

    def plot(self, records):
        return {"toy": Figure()}

    def table(self, records):
        return [["size", "square"], *([str(r["point"]["size"]), f"{r['result']['square']}"] for r in records)]


def test_a_stopped_sweep_goes_on(tmp_path):
    """Points with a record are not run again, also behind a line that a kill cut short."""
    first = Toy(killed_at=2)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(first.experiment, POINTS, tmp_path)
    with (tmp_path / "points.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"point": {"size"')
    assert len(read_records(tmp_path, pytest.fail)) == 2
    second = Toy()
    run_sweep(second.experiment, POINTS, tmp_path)
    assert first.ran + second.ran == POINTS
    records = read_records(tmp_path, pytest.fail)
    assert [record["point"] for record in records] == POINTS
    assert records[2]["result"] == {"square": 9.0}
    assert {"jax", "python"} <= set(records[0]["versions"]) and records[0]["seconds"] >= 0
    third = Toy()
    run_sweep(third.experiment, POINTS, tmp_path)
    assert not third.ran


def test_a_shard_is_run_by_one_command_at_a_time(tmp_path):
    told = []

    def run_too(done, total, record):
        if done == 1:
            with pytest.raises(InputError, match=r"out=.*is in use: process") as caught:
                run_sweep(Toy().experiment, POINTS, tmp_path)
            told.append(caught.value)

    run_sweep(Toy().experiment, POINTS, tmp_path, report=run_too)
    assert len(told) == 1


def test_shards_are_disjoint_and_complete(tmp_path):
    """Each writes a file of its own; together they make the sweep."""
    told = []
    for i in range(3):
        run_sweep(Toy().experiment, POINTS, tmp_path, (i, 3), lambda *a: told.append(a[:2]))
    assert told == [(1, 2), (2, 2)] * 3
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == [f"points-{i}-of-3.jsonl" for i in range(3)]
    assert not missing(POINTS, read_records(tmp_path, pytest.fail))
    whole = Toy()
    run_sweep(whole.experiment, POINTS, tmp_path)
    assert not whole.ran, "what shards have done counts for the whole"


def test_records_of_other_points_are_passed_over(tmp_path):
    run_sweep(Toy().experiment, [{"size": 9, "seed": 9}, *POINTS[:1]], tmp_path)
    assert [r["point"] for r in belonging(POINTS, read_records(tmp_path, pytest.fail))] == POINTS[:1]


def test_damaged_records_are_said_and_run_again(tmp_path):
    """A line that is no record, a record whose result cannot be tabulated, and a measured NaN."""
    whole = Toy()
    run_sweep(whole.experiment, POINTS, tmp_path)
    path = tmp_path / "points.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[:2] = "[]", '{"point": 3}'
    lines[2] = json.dumps({**json.loads(lines[2]), "result": {"cube": 1}})
    lines[3] = json.dumps({**json.loads(lines[3]), "result": {"square": None}})
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    said: list[str] = []
    records, complaints = whole.experiment.sound(read_records(tmp_path, said.append))
    assert len(said) == 2 and "points.jsonl:1" in said[0] and len(complaints) == 1 and "square" in complaints[0]
    assert [r["point"] for r in records] == POINTS[3:] and math.isnan(records[0]["result"]["square"])
    again = Toy()
    run_sweep(again.experiment, POINTS, tmp_path)
    assert again.ran == POINTS[:2]


@pytest.fixture
def toy(monkeypatch):
    """The toy under the name of a real experiment."""
    made = Toy()
    monkeypatch.setattr(command, "get_experiment", lambda name: made.experiment)
    return made


def test_the_command_runs_shows_and_draws(toy, tmp_path, capsys):
    line = f"experiment mqar --out {tmp_path}"
    assert main(f"{line} --shard 1/2".split()) == 0
    assert "3 of 6 points" in capsys.readouterr().out
    assert main(line.split()) == 0
    shown = capsys.readouterr().out
    assert "6/6 2 1: square 4" in shown and "6 of 6 points" in shown and str(tmp_path / "mqar-tiny/toy.png") in shown
    assert len(toy.ran) == 6
    assert main(["experiment", "--list", "--out", str(tmp_path)]) == 0
    assert "6 of 6" in capsys.readouterr().out


def test_nothing_to_draw_is_one_line(toy, tmp_path, complaint):
    wanted = f"mom-jax: out={tmp_path}/mqar-tiny: has no finished point to draw; run mom-jax experiment mqar --scale t"
    assert complaint("experiment", "mqar", "--out", tmp_path, "--plot").startswith(wanted)
    assert not toy.ran and not list(tmp_path.iterdir())


def test_every_experiment_has_points_that_differ():
    """Of every scale, JSON-ready; at the small one with at least three seeds where there are seeds."""
    for name in EXPERIMENTS:
        experiment = get_experiment(name)
        assert set(experiment.scales) <= set(SCALES)
        for scale in experiment.scales:
            points = [json.dumps(point, sort_keys=True) for point in experiment.points(scale)]
            assert points and len(set(points)) == len(points)
            made = [json.loads(point) for point in points]
            seeds = {point["seed"] for point in made if "seed" in point} or set(made[0].get("seeds", range(3)))
            assert len(seeds) >= {"tiny": 2, "small": 3}.get(scale, 1)


def test_unknown_names():
    with pytest.raises(InputError, match="experiment=mqr: unknown; did you mean mqar"):
        get_experiment("mqr")


def test_a_dry_run_says_what_the_papers_scale_takes(tmp_path, capsys):
    """Without a network: tokens and steps of the published recipe, hours by its FLOPs, what it is asked."""
    line = f"experiment recall --scale paper --dry-run --out {tmp_path} --only size=mom-340m model=MoM"
    assert main(line.split()) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 points" in shown and "recall-tasks" in shown and not list(tmp_path.iterdir())
    experiment = get_experiment("recall")
    points = [p for p in experiment.points("paper") if (p["size"], p["model"]) == ("mom-340m", "MoM")]
    (row, sums) = dry_run.rows(dry_run.planned(experiment, points))
    cells = dict(zip(dry_run.HEADING, row, strict=True))
    assert cells["steps each"] == "30,720" and cells["tokens each"] == f"{30_720 * 256 * 2048:,}"
    hours = float(cells["training FLOPs each"]) / (3600 * 0.4 * 989e12)
    assert float(cells["H100 hours each"]) == pytest.approx(hours, rel=0.05)
    assert cells["H100 hours"] == sums[dry_run.HEADING.index("H100 hours")]


def test_recall_trains_no_language_model():
    """A dry run of synthetic points names their number alone; the medium scale has one model for each seed."""
    experiment = get_experiment("recall")
    assert dry_run.planned(experiment, experiment.points("small")) == []
    medium = dry_run.planned(experiment, experiment.points("medium"))
    assert {cost.runs for cost in medium} == {3} and "MoM, medium" in [cost.name for cost in medium]
    (tokens,) = {c.config.steps * c.config.data.batch_size * c.config.data.sequence_length for c in medium}
    assert tokens == pytest.approx(1e9, rel=0.01)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_scale_can_be_planned(name):
    """Every point of every scale is one whose training the dry run knows."""
    experiment = get_experiment(name)
    for scale in experiment.scales:
        assert isinstance(dry_run.planned(experiment, experiment.points(scale)), list)


def test_a_recipe_puts_its_runs_where_the_sweep_looks(tmp_path, capsys):
    """A file for each language model, which training takes as it is; one line of the script for each, and the sweep."""
    chosen = "--only size=mom-340m model=MoM"
    line = f"experiment recall --scale paper {chosen} --recipe {tmp_path / 'recipe'} --out {tmp_path / 'sweeps'}"
    assert main(line.split()) == 0
    shown = capsys.readouterr().out.split()
    config_file, script = tmp_path / "recipe" / "mom-mom-340m-seed-0.yaml", tmp_path / "recipe" / "recipe.sh"
    assert shown == ["recipe:", str(config_file), "recipe:", str(script)]
    (point,) = [p for p in get_experiment("recall").points("paper") if (p["size"], p["model"]) == ("mom-340m", "MoM")]
    wanted = get_experiment("recall").training(point)
    config = read_config(str(config_file), TrainConfig())
    assert config == dataclasses.replace(wanted, run_dir=str(run_folder(wanted, tmp_path / "sweeps" / "models")))
    *_, train, sweep = script.read_text(encoding="utf-8").splitlines()
    assert train == f"mom-jax train --config {config_file}"
    assert sweep == f"mom-jax experiment recall --scale paper {chosen} --out {tmp_path / 'sweeps'}"


def test_no_recipe_of_what_trains_no_language_model(tmp_path, capsys):
    assert main(f"experiment capacity --scale small --recipe {tmp_path / 'recipe'}".split()) == 2
    assert "recipe=" in capsys.readouterr().err and not list(tmp_path.iterdir())
