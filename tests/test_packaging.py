"""The package as a stranger meets it: README, metadata, start-up, the interpreter finder."""

import importlib.metadata
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import mom_jax
from mom_jax.cli.main import VERBS, dispatch
from mom_jax.cli.parsing import parse
from mom_jax.cli.shell import main as completion_main
from mom_jax.cli.shell import script as completion_script
from mom_jax.cli.shell import words_by_verb
from mom_jax.data.config import DataConfig
from mom_jax.data.sources import find_sources
from mom_jax.data.tokenizers import load_tokenizer
from mom_jax.errors import InputError, install
from mom_jax.models.config import MEMORY_RULES
from mom_jax.reports.markdown import curves
from mom_jax.reports.records import Records
from mom_jax.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def run_python(code: str, folder: Path | None = None) -> str:
    """Output of a fresh interpreter, started in a folder, that sees the tree but holds no GPU."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, capture_output=True, text=True, env=env, timeout=300, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_of_memory_rules():
    """Every rule has a row of tools/make_rule_table.py, and every number in it is as small as the tests ask for."""
    tool = runpy.run_path(str(ROOT / "tools/make_rule_table.py"))
    table = tool["PLACE"].search(tool["PAGE"].read_text(encoding="utf-8"))[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[3:-1]]
    assert [row[0].split("`")[1] for row in rows] == list(MEMORY_RULES)
    for rule, *numbers in rows:
        before, behind = tool["published_form"](rule.split("`")[1])
        assert rule == before and (not behind or numbers[-1].strip("| ") == behind)
        *ours, reference = numbers[: len(tool["COLUMNS"])]
        measured = ours if rule.split("`")[1] in tool["WITHOUT_REFERENCE"] else [*ours, reference]
        assert all(float(number) < 1e-4 for number in measured)


def test_readme_tree_and_links_exist():
    """Every folder and file in the README's tree, and every local link of the README and the guides."""
    (tree,) = re.findall(r"```\n(pallas_kernels/.*?)```", README, flags=re.DOTALL)
    missing, package = [], ROOT
    for line in tree.splitlines():
        inside = line.startswith(" ")
        package = package if inside else ROOT / line.split()[0]
        path = package / line.split()[0] if inside else package
        missing += [] if path.exists() else [str(path.relative_to(ROOT))]
    for page in PAGES:
        links = re.findall(r"(?:\]\(|src=\")(?!https?:|#)([^)#\"]+)", page.read_text(encoding="utf-8"))
        missing += [f"{page.name}: {link}" for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_every_guide_is_on_the_site():
    """In one of the lists of the front page."""
    docs = ROOT / "docs"
    lists = re.findall(r"```{toctree}\n(.*?)```", (docs / "index.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    listed = {line for block in lists for line in block.splitlines() if line and not line.startswith(":")}
    pages = {str(page.relative_to(docs).with_suffix("")) for page in docs.rglob("*.md")} - {"index"}
    assert listed == pages


VERB = re.compile(r"\bmom-jax [a-z][^|>\n]*")


def shown_commands(page: Path) -> list[list[str]]:
    """The words of every ``mom-jax`` command in a page's shell examples."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = (VERB.search(line) for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [shlex.split(match[0], comments=True)[1:] for match in found if match]


class Parsed(Exception):
    """A verb's arguments are good; nothing ran."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_that_is_shown_can_be_pasted(page, monkeypatch):
    def only_parse(cls, args, **kwargs):
        parse(cls, args, **kwargs)
        raise Parsed

    for module, _ in VERBS.values():
        monkeypatch.setattr(f"{module}.parse", only_parse, raising=False)
    for words in shown_commands(page):
        if words[0] != "help" and not words[0].startswith("-"):
            with pytest.raises(Parsed):
                dispatch(words)


def test_what_is_installed_comes_from_the_source_folder():
    """No remedy and no page asks an index for this project, and every extra that one names exists."""
    files = [file for file in tree_files() if file.suffix in (".py", ".md", "") and "tests" not in file.parts]
    texts = {file: file.read_text(encoding="utf-8", errors="ignore") for file in files}
    asked = r"install(?: -\S+)* [\"']?mom-jax"
    assert [file for file, text in texts.items() if re.search(asked, text)] == []
    extras = re.findall(r"-e '?\.\[([\w,]+)\]|install\([\"'](\w+)[\"']\)", "\n".join(texts.values()))
    named = {extra for found in extras for extra in "".join(found).split(",")}
    assert {"eval", "gpu", "tpu", "hf", "mistral", "parity", "experiments"} <= named
    assert named <= set(PROJECT["optional-dependencies"])


def test_the_remedy_for_a_missing_package_can_be_pasted(tmp_path, monkeypatch):
    words = shlex.split(install("eval"))
    assert words[1:] == ["-m", "pip", "install", "-e", f"{ROOT}[eval]"] and Path(words[0]).is_file()
    monkeypatch.setattr("mom_jax.errors.__file__", str(tmp_path / "mom_jax/errors.py"))
    assert install("eval") == "in the source folder of mom-jax run pip install -e '.[eval]'"


def test_metadata():
    """Installed version, entry point, and the libraries that the project promises to name."""
    assert importlib.metadata.version("mom-jax") == mom_jax.__version__
    assert PROJECT["scripts"]["mom-jax"] == "mom_jax.cli.main:main"
    named = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["gpu"]
    for library in ("jax", "flax", "optax", "orbax-checkpoint", "chex", "jax-triton"):
        assert any(re.match(rf"{library}(\[|[<>=])", entry) for entry in named), library


def test_dependencies_are_explained():
    """The guide names every library of the metadata."""
    guide = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    entries = PROJECT["dependencies"] + [e for extra in PROJECT["optional-dependencies"].values() for e in extra]
    names = {re.split(r"[\[<>=]", entry)[0] for entry in entries} - {"mom-jax"}
    assert {name for name in names if name not in guide} == set()


def test_light_modules_leave_jax_alone():
    """The front door, configurations, the command line and the preparation of data start without what is slow."""
    light = "mom_jax, mom_jax.cli.main, mom_jax.data.prepare"
    light += "".join(f", mom_jax.{folder}.config" for folder in ("models", "data", "training"))
    heavy = {"jax", "flax", "optax", "grain", "matplotlib", "pyarrow", "datasets"}
    assert run_python(f"import sys, {light}; print(sorted({heavy} & set(sys.modules)))").strip() == "[]"


# What extras bring and the suite's environment has.
OPTIONAL = ("matplotlib", "jinja2", "pyarrow", "sentencepiece", "triton", "jax_triton", "lm_eval", "datasets", "torch")


def test_experiments_and_benchmarks_are_ours_whatever_the_folder_holds(tmp_path):
    """Every module of them can be imported where a user has packages of these names, the rest without any extra."""
    for name in ("experiments", "benchmarks", "tools"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not ours')", encoding="utf-8")
    code = f"""
import builtins, importlib, pkgutil, runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {sorted(OPTIONAL)}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Blocked())
modules = runpy.run_path({str(ROOT / "tools/package/modules.py")!r})
lacking = dict(modules["missing"]())
print(*(f"{{module}}:{{package}}" for module, package in lacking.items()))
sys.meta_path.pop(0)
for name in ("mom_jax.benchmarks", "mom_jax.experiments"):
    for module in pkgutil.walk_packages(importlib.import_module(name).__path__, f"{{name}}."):
        print(importlib.import_module(module.name).__name__)
"""
    lines = run_python(code, tmp_path).splitlines()
    without = dict(entry.split(":") for entry in lines[0].split())
    allowed = {"matplotlib", "jinja2", "torch", "fla", "transformers", "lm_eval", "datasets", "triton", "jax_triton"}
    assert {"matplotlib", "jinja2"} <= set(without.values()) <= allowed
    assert "mom_jax.drawing" in without
    light = ("mom_jax.data", "mom_jax.training", "mom_jax.models", "mom_jax.runs", "mom_jax.cli")
    assert [module for module in without if module.startswith(light)] == []
    found = set(lines[1:])
    assert {"mom_jax.benchmarks.tune", "mom_jax.experiments.studies.mqar", "mom_jax.experiments.report.page"} <= found
    top = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/__init__.py")}
    assert top - {"experiments", "tools", "tests"} == {"mom_jax", "pallas_kernels"}, "what a wheel installs"


def test_front_door():
    """Every name that `mom_jax` promises is there."""
    assert "MoMForCausalLM" in mom_jax.__all__
    for name in mom_jax.__all__:
        assert getattr(mom_jax, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        mom_jax.__getattr__("no_such_name")


def tree_files() -> list[Path]:
    """The project's own files: no environments, caches, builds or runs."""
    own = [path for path in ROOT.iterdir() if path.name in (".ci", ".gitignore") or path.name[0] != "."]
    own = [path for path in own if path.name not in ("runs", "build", "dist")]
    files = [file for path in own for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()]
    return [file for file in files if "__pycache__" not in file.parts and ".egg-info" not in str(file)]


def test_no_index_hosts_and_no_lock_files():
    """Where packages come from is the machine's business: no host of an index, and no lock file."""
    words = ("py" + r"pi\.org", "python" + r"hosted\.org", "index" + "-url", "find" + "-links")
    files = tree_files()
    assert ROOT / "README.md" in files and ROOT / "tools/make-venv" in files
    assert [f for f in files if re.search(r"\.lock$|^requirements.*\.txt$|^pylock\.", f.name)] == []
    assert [f for f in files if re.search("|".join(words), f.read_text(encoding="utf-8", errors="ignore"))] == []


def fake_python(folder: Path, name: str, version: str, ensurepip: bool = True, runs: bool = True) -> Path:
    """A stand-in interpreter that answers the finder's two questions."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    answers = f'case "$2" in *version_info*) echo {version} ;; *) exit {int(not ensurepip)} ;; esac'
    path.write_text(f"#!/bin/sh\n{answers if runs else 'exit 127'}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def find_python(tmp_path: Path, *folders: Path, versions: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs the finder with nothing but `folders` on PATH and an empty home."""
    env = {"PATH": ":".join(map(str, folders)), "HOME": str(tmp_path / "home")}
    finder = ["/bin/sh", str(ROOT / "tools/find-python"), *versions]
    return subprocess.run(finder, capture_output=True, text=True, env=env, timeout=60)


def test_finder_prefers_312_and_runs_what_it_finds(tmp_path):
    """A 3.12 that does not run is passed over for one further down PATH, and 3.12 goes before 3.11."""
    fake_python(tmp_path / "a", "python3.12", "3.12", runs=False)
    fake_python(tmp_path / "a", "python3.11", "3.11")
    good = fake_python(tmp_path / "b", "python3", "3.12")
    assert find_python(tmp_path, tmp_path / "a", tmp_path / "b").stdout.strip() == str(good)
    done = find_python(tmp_path, tmp_path / "a", tmp_path / "b", versions=("3.11",))
    assert done.stdout.strip() == str(tmp_path / "a/python3.11")


def test_finder_looks_into_pyenv(tmp_path):
    """Versions that pyenv installed count although only a broken shim is on PATH."""
    fake_python(tmp_path / "a", "python3.12", "3.12", runs=False)
    bin_folder = tmp_path / "home/.pyenv/versions/3.12.1/bin"
    bin_folder.parent.mkdir(parents=True)
    good = fake_python(bin_folder, "python3.12", "3.12")
    assert find_python(tmp_path, tmp_path / "a").stdout.strip() == str(good)


@pytest.mark.parametrize(
    "version,ensurepip,words",
    [("3.9", True, "no Python 3.12 or 3.11 or 3.13 or 3.14 found"), ("3.11", False, "apt install python3.11-venv")],
    ids=["too old", "without venv"],
)
def test_finder_says_what_to_do(tmp_path, version, ensurepip, words):
    """Without a suitable Python: one line, non-zero exit, nothing on stdout."""
    fake_python(tmp_path / "a", f"python{version}", version, ensurepip=ensurepip)
    done = find_python(tmp_path, tmp_path / "a")
    assert done.returncode == 1 and done.stdout == ""
    assert words in done.stderr and done.stderr.count("\n") == 1


def _parquet(folder: Path) -> None:
    (folder / "a.parquet").write_bytes(b"not empty")
    find_sources(DataConfig(path=str(folder / "a.parquet")))


def _packed_text(folder: Path) -> None:
    (folder / "a.txt.gz").write_bytes(b"not empty")
    find_sources(DataConfig(path=str(folder)))


def _sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.model").touch()
    load_tokenizer(str(folder))


WITHOUT = {
    "parquet": ("pyarrow", "text", _parquet),
    "compressed text": ("pyarrow", "text", _packed_text),
    "sentencepiece": ("sentencepiece", "text", _sentencepiece),
    "mistral": ("mistral_common", "mistral", lambda folder: load_tokenizer("mistral")),
    "a page": ("jinja2", "report", lambda folder: dispatch(["report", str(folder)])),
    "a page's pictures": ("matplotlib", "report", lambda folder: dispatch(["report", str(folder)])),
    "experiments": ("matplotlib", "report", lambda folder: dispatch(["experiment", "--list"])),
}


@pytest.mark.parametrize("package,extra,use", WITHOUT.values(), ids=WITHOUT)
def test_what_an_extra_brings_is_asked_for_by_name(tmp_path, monkeypatch, package, extra, use):
    """A line that installs the extra, before anything is done."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(InputError) as caught:
        use(tmp_path)
    assert caught.value.remedy.endswith(install(extra)) and extra in PROJECT["optional-dependencies"]


def test_a_report_without_pictures_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr("mom_jax.reports.markdown.is_installed", lambda name: False)
    lines = curves(TrainConfig(), Records([], []), tmp_path)
    assert install("report") in lines[-1] and list(tmp_path.iterdir()) == []


def test_papers_of_the_repository_agree():
    """Versions, make targets and extras that are named outside of the package exist."""
    version = mom_jax.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version and f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for path in [*(ROOT / ".github").rglob("*.yml"), ROOT / "launch/Containerfile", ROOT / "CONTRIBUTING.md"]:
        text = path.read_text(encoding="utf-8")
        assert path.suffix != ".yml" or yaml.safe_load(text)
        assert set(re.findall(r"(?:run: |^)make ([a-z-]+)", text, re.MULTILINE)) <= targets, path
        extras = ",".join(re.findall(r"install .*['\"]\.\[([\w,]+)", text)).split(",")
        assert set(filter(None, extras)) <= set(PROJECT["optional-dependencies"]), path


WORDS = {"plan": ["mom-tiny", "--length"], "report": ["--out"]}


def test_completion(monkeypatch, capsys):
    """The options that a verb's help names; in bash, the words that fit what was begun."""
    monkeypatch.setattr("mom_jax.cli.main.VERBS", {verb: VERBS[verb] for verb in ("plan", "data")})
    words = words_by_verb()
    assert {"mom-340m", "--model.topk"} <= set(words["plan"]) and {"prepare", "--data.path"} <= set(words["data"])
    script = completion_script("bash", WORDS)
    tried = 'COMP_WORDS=(mom-jax plan {0}); COMP_CWORD=2; _mom_jax; echo "${{COMPREPLY[@]}}"'
    for begun, whole in (("mo", "mom-tiny"), ("--", "--length"), ("--o", "")):
        done = subprocess.run(["bash", "-c", script + tried.format(begun)], capture_output=True, text=True, timeout=60)
        assert done.stdout.strip() == whole and done.stderr == ""
    for shell in ("zsh", "fish"):
        assert all(word.lstrip("-") in completion_script(shell, WORDS) for word in ("mom-tiny", "--length", "report"))
    assert completion_main(["fish"]) == 0
    assert "-a 'prepare'" in capsys.readouterr().out
