"""The HTML page of runs and sweeps, made from files written by hand; nothing is trained."""

import dataclasses
import html
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mom_jax.experiments.common.architectures import ARCHITECTURES
from mom_jax.experiments.registry import get_experiment
from support import made_up
from support.made_up import train_record, write_run

from mom_jax.cli.main import main
from mom_jax.cli.train import command_of, parse_train
from mom_jax.evals.harness.suites import SUITES
from mom_jax.experiments import paper
from mom_jax.interop.published import write_config
from mom_jax.models.presets import get_preset
from mom_jax.training.config import get_train_preset

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVALUATION = {**made_up.EVALUATION, "data": "texts", "sequence_length": 256}
VERSIONS = {"python": "3.12.1", "jax": "0.11.2"}
SITTING = {"date": "2026-01-02 03:04", "step": 0, "devices": "2 TPU v4", "versions": VERSIONS}


class Strict(HTMLParser):
    """Takes a page to pieces; a tag that is not closed, or closed twice, fails."""

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.ids, self.texts = [], [], [], []

    def handle_starttag(self, tag, attrs):
        """Also of void elements."""
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        """Closes the innermost element, and no other."""
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data):
        """Text outside the style."""
        if "style" not in self.open:
            self.texts.append(data)


def read_page(path: Path) -> tuple[str, Strict]:
    """A page's visible text in one line, and its parts; checks that it stands by itself."""
    source = path.read_text(encoding="utf-8")
    assert source.lstrip().startswith("<!DOCTYPE html>")
    page = Strict()
    page.feed(source)
    page.close()
    assert page.open == []
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert {a.removeprefix("#") for a in page.addresses if a[0] == "#"} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|url\(|<script|<link|<iframe", source)
    return " ".join(" ".join(page.texts).split()), page


def make_run(folder: Path, final_loss: float = 1.9173, **changes) -> Path:
    """A run of 20 steps."""
    records = [train_record(10, 3.0), {"step": 10, "held_out_loss": 2.8642}, train_record(20, final_loss)]
    records.append({"step": 20, "held_out_loss": final_loss + 0.1})
    return write_run(folder, records, steps=20, **changes)


def task(metrics: dict[str, float], limit: int | None = None) -> dict:
    """As ``mom-jax eval --tasks`` writes one."""
    return {
        "metrics": metrics,
        "stderr": dict.fromkeys(metrics, 0.0123),
        "higher_is_better": dict.fromkeys(metrics, True),
        "samples": 1102,
        "fewshot": 0,
        "version": 1.0,
        "step": 20,
        "sequence_length": 2048,
        "limit": limit,
        "lm_eval": "0.4.13",
    }


def add_tasks(folder: Path, limit: int | None = None) -> None:
    found = {name: task({"contains": 0.1017 * i}, limit) for i, name in enumerate(SUITES["recall"], 1)}
    found["wikitext"] = task({"word_perplexity": 31.257})
    groups = {"longbench_code": {"metrics": {"score": 0.4321}}}
    (folder / "tasks.json").write_text(json.dumps({"tasks": found, "groups": groups}), encoding="utf-8")


@pytest.fixture
def run(tmp_path):
    folder = make_run(tmp_path / "runs/first")
    (folder / "eval.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    (folder / "sittings.jsonl").write_text(json.dumps(SITTING) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Two architectures of the smallest task, with two seeds each; the accuracies are told apart by their digits."""
    folder = tmp_path / "experiments/mqar-tiny"
    folder.mkdir(parents=True)
    points = get_experiment("mqar").points("tiny")
    records = [
        {
            "point": point,
            "result": made_up.tuned_result([0.11 + 0.0701 * i, 0.21 + 0.0701 * i]),
            "seconds": 60.0,
            "date": "2026-02-03 04:05",
            "versions": VERSIONS,
        }
        for i, point in enumerate(p for p in points if p["architecture"] in ("mom", "single"))
    ]
    records.append({**records[0], "point": {"of": "an earlier version"}})
    (folder / "points.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return folder


def test_a_run_is_shown_with_every_number(run, tmp_path, capsys):
    add_tasks(run, limit=50)
    assert main(["report", str(run)]) == 0
    page = run / "report.html"
    assert capsys.readouterr().out == f"report: {page}\n"
    text, parts = read_page(page)
    for row in ("20 256 – 12,345 1.2512 3.494 1.8051", "0–15 345 2.5171", "16–255 12,000 1.2239"):
        assert row in text, row
    assert "0 0.511 0.252 0.126 0.111 1.013 1 0.251 0.249 0.253 0.247 1.257" in text
    for told in ("20 of 20", "40,960", "1.9173", "2.0173", "2.8642", "4,096 tokens/s", "nearest preset mom-tiny"):
        assert told in text, told
    assert "2026-01-02 03:04 UTC, from step 0, on 2 TPU v4; python 3.12.1, jax 0.11.2" in text
    assert f"mom-jax train mom-tiny --run-dir {run} --steps 20" in text
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert json.dumps(config, indent=2) in html.unescape(page.read_text(encoding="utf-8"))
    assert sum(address.startswith("data:") for address in parts.addresses) == 5
    assert sorted(path.name for path in run.parent.iterdir()) == ["first"]


def test_tasks_stand_beside_the_papers(run, tmp_path):
    add_tasks(run, limit=50)
    main(["report", str(run)])
    text, _ = read_page(run / "report.html")
    for i in range(1, 7):
        assert f"contains {0.1017 * i:.4f} 0.0123 higher 1,102" in text
    shares = " ".join(f"{10.17 * i:.2f}" for i in range(1, 7))
    assert f"first (only 50 documents of some tasks) {shares} {10.17 * 3.5:.2f}" in text
    assert "first (only 50 documents of some tasks) 31.26 – –" in text
    assert "– – – 43.21 –" in text
    tables = [table for table in vars(paper).values() if isinstance(table, paper.PaperTable)]
    assert sorted(table.number for table in tables) == [2, 3, 4, 6, 7, 8, 9]
    for table in tables:
        for size, model, numbers in table.rows:
            assert len(numbers) == len(table.columns)
            assert f"{size} {model} {' '.join(f'{number:.2f}' for number in numbers)}" in text


def test_averages_of_the_recall_table_are_the_papers():
    """A slip in copying a number would show."""
    for _, _, (*each, average) in paper.RECALL.rows:
        assert sum(each) / len(each) == pytest.approx(average, abs=0.011)


def test_runs_are_compared(run, tmp_path):
    other = make_run(tmp_path / "runs/second", 1.7261, seed=5)
    assert main(["report", str(run), str(other), str(run), "--out", str(tmp_path / "both.html")]) == 0
    text, parts = read_page(tmp_path / "both.html")
    assert "Runs side by side" in text and "seed 0 5" in text and "steps 20 20" not in text
    assert "not all of these losses" not in text
    assert "first second preset mom-tiny mom-tiny parameters" in text and "tokens 40,960 40,960" in text
    assert "training loss 1.9173 1.7261 held-out loss in training 2.0173 1.8261" in text
    assert "held-out loss (mom-jax eval) 1.2512 – perplexity" in text
    assert sum(address.startswith("data:") for address in parts.addresses) == 11
    assert "date and versions were not recorded" in text


def test_losses_of_other_text_are_not_compared_in_silence(run, tmp_path):
    data = dataclasses.replace(get_train_preset("mom-tiny").data, path="elsewhere")
    other = make_run(tmp_path / "deep/first", data=data)
    main(["report", str(run), str(other)])
    text, _ = read_page(tmp_path / "runs/runs-first+deep-first.html")
    assert "not all of these losses can be compared" in text
    assert "runs/first" in text and "deep/first" in text


def test_a_sweep_is_shown_with_all_seeds(sweep, tmp_path):
    assert main(["report", str(sweep)]) == 0
    text, parts = read_page(sweep / "report.html")
    for accuracy in (0.11, 0.21, 0.1801, 0.2801):
        assert f"{accuracy:.3f}" in text and f"{accuracy:.6g}" in text
    assert "2 of 8, not finished; 1 records of other points" in text and "claims nothing" in text
    assert "seeds 0 1" in text and "2.0 minutes in all" in text and "python 3.12.1, jax 0.11.2" in text
    assert "mom-jax experiment mqar --scale tiny" in text and "the paper has no such result" in text
    assert ARCHITECTURES["single"][0] in text
    assert sum(address.startswith("data:") for address in parts.addresses) == 1


def test_a_published_model_is_shown_by_its_tasks(tmp_path):
    folder = tmp_path / "MoM-340M"
    folder.mkdir()
    write_config(get_preset("mom-340m"), folder / "config.json", "bfloat16")
    add_tasks(folder)
    assert main(["report", str(folder)]) == 0
    text, _ = read_page(folder / "report.html")
    assert "published model" in text and "0.4.13" in text and "Table 2 of the paper" in text


def test_text_of_users_is_escaped(tmp_path):
    evil = '<script>alert("1")</script>&amp;'
    data = dataclasses.replace(get_train_preset("mom-tiny").data, path=evil)
    run = make_run(tmp_path / "<b>bold & 'quoted'", data=data)
    found = {"tasks": {"<i>mine": task({"<u>acc": 0.5})}, "groups": {}}
    (run / "tasks.json").write_text(json.dumps(found), encoding="utf-8")
    assert main(["report", str(run)]) == 0
    text, _ = read_page(run / "report.html")
    for raw in (evil, "<b>bold & 'quoted'", "<i>mine", "<u>acc"):
        assert raw in text


@pytest.mark.parametrize("preset", ["mom-tiny", "mom-tiny-gla", "mom-340m"])
def test_the_command_of_a_run_gives_that_run(preset):
    config = get_train_preset(preset)
    model = dataclasses.replace(
        config.model, tie_word_embeddings=False, hidden_size=256,
        attn=dataclasses.replace(config.model.attn, layers=(1,), window_size=64),
    )  # fmt: skip
    changed = dataclasses.replace(config, model=model, max_minutes=1.5, run_dir="a b/c's", steps=7)
    for wanted in (config, changed):
        found, command = command_of(wanted)
        assert found == preset and command.startswith(f"mom-jax train {preset}")
        assert parse_train(shlex.split(command)[2:]).run == wanted


@pytest.mark.parametrize(
    ("out", "cause"),
    [
        ("{runs}/first/config.json/page.html", "config.json is a file"),
        ("{runs}/first/config.json", "config.json is a file"),
        ("/proc/pages/page.html", "/proc: "),
        ("{runs}/%s/page.html" % ("long" * 70), "is too long for a file system"),
    ],
)
def test_an_impossible_place_is_named_with_its_cause(run, out, cause, complaint):
    said = complaint("report", run, "--out", out.format(runs=run.parent))
    assert said.startswith("mom-jax: out=") and cause in said


def test_a_page_overwrites_none_of_another_run(run, tmp_path, monkeypatch, capsys):
    """Each in its own folder; several beside the first, named after all; or where --out says, a file or a folder."""
    monkeypatch.setattr("mom_jax.experiments.report.runs.draw_pictures", lambda *_: {})
    other, pages = make_run(tmp_path / "runs/second"), tmp_path / "pages"
    for line in ([run], [other], [run, other], [run, "--out", pages], [other, "--out", pages / "new/b.html"]):
        assert main(["report", *map(str, line)]) == 0
    written = [line.removeprefix("report: ") for line in capsys.readouterr().out.splitlines()]
    names = ["runs/first/report.html", "runs/second/report.html", "runs/first+second.html"]
    assert written == [str(tmp_path / name) for name in (*names, "pages/first.html", "pages/new/b.html")]
    assert all(Path(page).is_file() for page in written)


def test_a_folder_that_cannot_be_written_to(run, monkeypatch, complaint):
    monkeypatch.setattr("mom_jax.experiments.report.command.why_not_writable", lambda folder: "Read-only file system")
    assert "(Read-only file system); give another place with --out" in complaint("report", run)


def test_evaluations_baselines_and_a_sample_are_on_the_page(run):
    """Several sizes side by side, the two held-out losses explained."""
    sample = {"prompt": "def f(", "text": "x): <b>", "temperature": 0.7}
    whole = {**EVALUATION, "windows": 90, "windows_in_all": 90, "baselines": {"bigram": 3.5}, "sample": sample}
    content = {**whole, "others": [{**EVALUATION, "windows": 16, "windows_in_all": 90}]}
    (run / "eval.json").write_text(json.dumps(content), encoding="utf-8")
    assert main(["report", str(run)]) == 0
    text, _ = read_page(run / "report.html")
    for told in ("256 all 12,345", "256 16 of 90 12,345", "bigram 3.5000 1.6949 bits (48.4%) lower", "def f(x): <b>"):
        assert told in text
    assert "There are two held-out losses." in text and "at most 64 windows of 256 tokens" in text
    assert "By position in the window: step 20, windows of 256, 16 of 90 scored" in text


DAMAGED = {
    "eval.json": ['{"step": 3}', "[]", "null", "{", "\x00", json.dumps({**EVALUATION, "by_position": [3]})],
    "tasks.json": ['{"tasks": [], "groups": 3}', '{"tasks": {"a": {"metrics": 1}}}', "7", "}"],
    "metrics.jsonl": ["[1]\n", '{"step": "a", "loss": 1}\n', "{\n", json.dumps(train_record(10**400, 1.0)) + "\n"],
    "sittings.jsonl": ["{}\n", "[]\n", '{"date": 3, "step": 0, "devices": "", "versions": {}}\n'],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_stops_no_report(run, name, monkeypatch):
    """What cannot be read is named on the page, the rest is shown."""
    if name != "metrics.jsonl":
        monkeypatch.setattr("mom_jax.experiments.report.runs.draw_pictures", lambda *_: {})
    old = (run / name).read_text(encoding="utf-8") if name == "metrics.jsonl" else ""
    for content in DAMAGED[name] if name.endswith(".json") else ["".join(DAMAGED[name])]:
        (run / name).write_text(old + content, encoding="utf-8")
        assert main(["report", str(run)]) == 0
        text, _ = read_page(run / "report.html")
        assert f"Left out: {run / name}" in text or f"Left out: file={run / name}" in text
        assert name.endswith(".json") or text.count(f"{run / name}:") == len(DAMAGED[name])
        assert "1.9173 nats per token" in text


def test_a_damaged_point_stops_no_report(sweep):
    points = (sweep / "points.jsonl").read_text(encoding="utf-8")
    record = json.loads(points.splitlines()[0])
    damaged = [[], {"point": 3}, {**record, "seconds": "long"}, {**record, "result": {"accuracy": "high"}}]
    lines = "".join(json.dumps(line) + "\n" for line in damaged)
    (sweep / "points.jsonl").write_text(lines + points.partition("\n")[2], encoding="utf-8")
    assert main(["report", str(sweep)]) == 0
    text, _ = read_page(sweep / "report.html")
    assert text.count("points.jsonl:") == 3 and text.count("has another form") == 1 and "1 of 8" in text


def test_mistakes_are_one_line(run, tmp_path, complaint):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"paths={tmp_path}/none: no such folder" in complaint("report", tmp_path / "none")
    assert "is neither a run (config.json) nor a sweep (points.jsonl)\n" in complaint("report", empty)
    assert f"did you mean {run}?" in complaint("report", run.parent)
    (run / "eval.json").unlink()
    (run / "metrics.jsonl").write_text("", encoding="utf-8")
    assert f"run={run}: has no metrics yet" in complaint("report", run)
    assert not list(tmp_path.rglob("*.html"))


def test_mistakes_in_sweeps_are_one_line(sweep, tmp_path, complaint):
    points = sweep / "points.jsonl"
    points.rename(points.with_name("points-0-of-2.jsonl"))
    renamed = sweep.rename(sweep.with_name("mine"))
    assert "holds points of an unknown experiment" in complaint("report", renamed)
    sweep = renamed.rename(sweep)
    (sweep / "points-0-of-2.jsonl").write_text("", encoding="utf-8")
    assert "has no finished point; run mom-jax experiment mqar --scale tiny" in complaint("report", sweep)
    (sweep / "points-0-of-2.jsonl").write_text("{]\n", encoding="utf-8")
    assert f"that can be read ({sweep}/points-0-of-2.jsonl:1 is damaged" in complaint("report", sweep)
