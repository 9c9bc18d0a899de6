"""Whole evaluations on small local data of the real tasks' formats, without a network; and what can go wrong."""

import json
import math
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from flax import nnx
from jax import device_put
from lm_eval.tasks._index import TaskIndex

import mom_jax.evals.harness.tasks as tasks_module
from mom_jax.errors import InputError
from mom_jax.evals.harness.evaluate import evaluate_tasks, fingerprint
from mom_jax.evals.harness.likelihood import Pair, score_pairs
from mom_jax.evals.harness.model import HarnessModel
from mom_jax.evals.harness.needles import NEEDLE_TASKS
from mom_jax.evals.harness.recall import RECALL_SETS
from mom_jax.evals.harness.suites import SUITES, suite_means
from mom_jax.evals.harness.tasks import OWN, find_tasks, load_tasks
from mom_jax.models.lm import MoMForCausalLM

LENGTH = 256
QUESTIONS = [
    {"question": "Is it wet?", "choices": {"text": ["sea", "sand", "tin"], "label": ["A", "B", "C"]}, "answerKey": "A"},
    {"question": "What burns?", "choices": {"text": ["ice", "wood"], "label": ["1", "2"]}, "answerKey": "2"},
    {"question": "What flies?", "choices": {"text": ["a stone", "a bird"], "label": ["A", "B"]}, "answerKey": "B"},
]  # fmt: skip
PAGES = [{"page": "One page of text, read in windows. " * 12}, {"page": "Another, shorter one."}]
PAPERS = [
    {"text": "Device: a pump. Maker: Acme. ", "key": "maker", "value": "Acme"},
    {"text": "Device: a lamp. Maker: Beta. ", "key": "device", "value": "a lamp"},
]
ARC = """
task: tiny_arc
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices.label.index(answerKey)}}"
doc_to_choice: "{{choices.text}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
WIKITEXT = """
task: tiny_wikitext
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: byte_perplexity}
  - {metric: bits_per_byte}
"""


@pytest.fixture(scope="module", autouse=True)
def few_files():
    """Of the harness's own 14,000 task files those of the papers' tasks are read: all of them take ten seconds."""
    read = TaskIndex._iter_yaml_files
    papers = {"wikitext", "lambada", "piqa", "hellaswag", "winogrande", "arc", "longbench"}
    few = lambda root: (path for path in read(root) if path.parent == root or papers & {*path.parts})  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskIndex, "_iter_yaml_files", few)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Task files and their data."""
    path = tmp_path_factory.mktemp("tasks")
    for name, yaml, rows in (("arc", ARC, QUESTIONS), ("wikitext", WIKITEXT, PAGES)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        place = f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {path}/{name}.jsonl}}\ntest_split: test\n"
        (path / f"{name}.yaml").write_text(yaml + place, encoding="utf-8")
    return path


@pytest.fixture
def hub(monkeypatch):
    """The hub's data set of FDA's papers, and none besides."""
    load = datasets.load_dataset

    def load_dataset(path, name=None, **options):
        if path == "hazyresearch/based-fda":
            return datasets.DatasetDict(validation=datasets.Dataset.from_list(PAPERS))
        if path.startswith("json"):
            return load(path, name=name, **options)
        raise ConnectionError(f"Couldn't reach '{path}' on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.fixture(scope="module")
def lm(model, tokenizer):
    return HarnessModel(model, tokenizer, max_length=LENGTH, batch_size=4)


@pytest.fixture
def results(lm, tokenizer, folder, hub, tmp_path):
    """Three kinds of tasks in one evaluation."""
    names = ["tiny_arc", "tiny_wikitext", "recall_fda"]
    tasks = load_tasks(names, find_tasks(names, folder), tokenizer, LENGTH)
    return evaluate_tasks(lm, tasks.values(), None, tmp_path / "answers")


def test_end_to_end(recwarn, results, lm, model, greedy_contains):
    """Every metric is what the model's scores of the same texts make it; no process was forked for it."""
    assert not [said for said in recwarn if "os.fork" in str(said.message)]
    tasks = results["tasks"]
    assert {name: task["samples"] for name, task in tasks.items()} == {
        "tiny_arc": 3,
        "tiny_wikitext": 2,
        "recall_fda": 2,
    }
    right, right_by_length = choices(model)
    assert tasks["tiny_arc"]["metrics"] == pytest.approx({"acc": right, "acc_norm": right_by_length})
    ids = [list(doc["page"].encode()) for doc in PAGES]
    asked = [SimpleNamespace(args=(doc["page"],)) for doc in PAGES]
    nats = -sum(lm.loglikelihood_rolling(asked, disable_tqdm=True))
    size = sum(map(len, ids))
    words = sum(len(doc["page"].split()) + doc["page"].endswith(" ") for doc in PAGES)
    expected = {
        "word_perplexity": math.exp(nats / words),
        "byte_perplexity": math.exp(nats / size),
        "bits_per_byte": nats / size / math.log(2),
    }
    assert tasks["tiny_wikitext"]["metrics"] == pytest.approx(expected, rel=1e-5)
    assert tasks["recall_fda"]["metrics"] == {"contains": greedy_contains}
    json.dumps(results)


def choices(model):
    """Shares of questions whose likeliest choice is right, and likeliest per byte."""
    right = []
    for doc in QUESTIONS:
        context = f"Question: {doc['question']}\nAnswer:"
        texts = [" " + text for text in doc["choices"]["text"]]
        pairs = [Pair(list(context.encode()), list(text.encode())) for text in texts]
        scores = {s.pair: s.log_likelihood for s in score_pairs(model, pairs, LENGTH, 4, device_put)}
        values = np.array([scores[i] for i in range(len(pairs))])
        answer = doc["choices"]["label"].index(doc["answerKey"])
        sizes = np.array([len(text) for text in doc["choices"]["text"]])
        right.append((values.argmax() == answer, (values / sizes).argmax() == answer))
    return tuple(np.mean(right, axis=0))


@pytest.fixture
def greedy_contains(lm):
    """Share of FDA's answers that hold the value."""

    def prompt(doc):
        text, key = doc["text"].strip().strip("."), doc["key"]
        return SimpleNamespace(args=(f"{text}. {key[0].upper()}{key[1:]}:", {"until": ["\n"], "max_gen_toks": 48}))

    texts = lm.generate_until([prompt(doc) for doc in PAPERS], disable_tqdm=True)
    return float(np.mean([doc["value"].lower() in text.lower() for doc, text in zip(PAPERS, texts, strict=True)]))


def test_the_second_time_nothing_is_computed(results, lm, tokenizer, folder, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(lm, "_scores", None)
    monkeypatch.setattr("mom_jax.evals.harness.model.answer_prompts", None)
    names = ["tiny_arc", "tiny_wikitext", "recall_fda"]
    tasks = load_tasks(names, find_tasks(names, folder), tokenizer, LENGTH)
    assert evaluate_tasks(lm, tasks.values(), None, tmp_path / "answers") == results


def test_limit(lm, tokenizer, folder):
    tasks = load_tasks(["tiny_arc"], find_tasks(["tiny_arc"], folder), tokenizer, LENGTH)
    assert evaluate_tasks(lm, tasks.values(), 1, None)["tasks"]["tiny_arc"]["samples"] == 1


def test_fingerprint_follows_the_weights(lm, model, tokenizer):
    other = MoMForCausalLM(model.config, rngs=nnx.Rngs(1))
    same = HarnessModel(model, tokenizer, max_length=LENGTH, batch_size=1)
    assert fingerprint(lm) == fingerprint(same)
    assert fingerprint(lm) != fingerprint(HarnessModel(other, tokenizer, max_length=LENGTH, batch_size=4))
    assert fingerprint(lm) != fingerprint(HarnessModel(model, tokenizer, max_length=LENGTH + 1, batch_size=4))


def test_means_of_whole_suites_only():
    tasks = {name: {"metrics": {"contains": i / 10}} for i, name in enumerate(RECALL_SETS)}
    assert SUITES["recall"].keys() == RECALL_SETS.keys()
    assert suite_means(tasks) == {"recall": pytest.approx(0.25)}
    assert suite_means(dict(list(tasks.items())[1:])) == {}


@pytest.mark.parametrize("name", ["needle_multi_query", "needle_common_words"])
def test_needles_need_no_network(name, tokenizer):
    """A hundred questions of the length that the model reads, the same ones again; scored by what is found."""
    (task,) = load_tasks([name], find_tasks([name], None), tokenizer, 600).values()
    docs = list(task.test_docs())
    assert len(docs) == 100 and docs == list(OWN[name](name, tokenizer, 600).test_docs())
    assert len({doc["prompt"] for doc in docs}) == 100 and max(len(doc["prompt"]) for doc in docs) <= 600
    assert task.doc_to_text(docs[0]).endswith("Answer:")
    answers = docs[0]["answers"]
    assert task.process_results(docs[0], [" " + ", ".join(answers)]) == {"found": 1.0}
    assert task.process_results(docs[0], [answers[0]])["found"] == pytest.approx(1 / len(answers))
    assert set(SUITES["needles"]) == set(NEEDLE_TASKS)


def test_needles_in_too_few_tokens(tokenizer):
    with pytest.raises(InputError, match="length=64: must be at least"):
        load_tasks(["needle_single"], find_tasks(["needle_single"], None), tokenizer, 64)


def test_unknown_tasks_name_the_closest(folder):
    with pytest.raises(InputError, match="tasks=tiny_ark: unknown; did you mean tiny_arc"):
        find_tasks(["tiny_arc", "tiny_ark"], folder)
    with pytest.raises(InputError, match="tasks=zzzzqq: unknown; mom-jax's own sets are recall, needles, commonsense"):
        find_tasks(["zzzzqq"], folder)
    with pytest.raises(InputError, match="include_path=nowhere: no such folder"):
        find_tasks(["tiny_arc"], "nowhere")


def test_the_harness_has_the_papers_tasks(folder):
    """Every name of the suites and of LongBench is known."""
    manager = find_tasks([*SUITES, "longbench"], folder)
    assert {"piqa", "longbench"} <= set(manager.task_index)


@pytest.mark.parametrize("name", ["recall_swde", "far"])
def test_absent_data_says_how_to_fetch_it(name, folder, tmp_path, tokenizer, hub):
    place = "dataset_path: who/far\ndataset_name: part\n"
    (tmp_path / "far.yaml").write_text(ARC.replace("tiny_arc", "far") + place, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_tasks([name], find_tasks([name], tmp_path), tokenizer, LENGTH)
    wanted = "'who/far', 'part'" if name == "far" else "'hazyresearch/based-swde-v2'"
    assert str(caught.value).startswith(f"tasks={name}: its data is not on this machine (Couldn't reach")
    assert f"datasets.load_dataset({wanted})" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change,message",
    [
        (("{{choices.text}}", "{{gone.text}}"), "its task file cannot be used .UndefinedError: 'gone' is undefined"),
        (('"{{choices.text}}"', '["", "b"]'), "its task file cannot be used .IndexError: string index out of range"),
        (("Question: {{", "Question: {% "), "its task file cannot be used .TemplateSyntaxError"),
        (("{{choices.label.index(answerKey)}}", "{{choices.label.index('Z')}}"), "'Z' is not in list"),
    ],
)
def test_task_files_that_do_not_fit_are_one_line(change, message, folder, tmp_path, lm, tokenizer):
    """When they are read, or with the first document."""
    text = (folder / "arc.yaml").read_text(encoding="utf-8")
    assert change[0] in text
    (tmp_path / "arc.yaml").write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(InputError, match=f"tasks=.*{message}") as caught:
        tasks = load_tasks(["tiny_arc"], find_tasks(["tiny_arc"], tmp_path), tokenizer, LENGTH)
        evaluate_tasks(lm, tasks.values(), None, None)
    assert "\n" not in str(caught.value)


def test_absent_files_and_packages(tmp_path, tokenizer, monkeypatch):
    place = "dataset_path: json\ndataset_kwargs:\n  data_files: {test: nowhere.jsonl}\ntest_split: test\n"
    (tmp_path / "lost.yaml").write_text(ARC.replace("tiny_arc", "lost") + place, encoding="utf-8")
    manager = find_tasks(["lost"], tmp_path)
    with pytest.raises(InputError, match="tasks=lost: its data cannot be loaded"):
        load_tasks(["lost"], manager, tokenizer, LENGTH)

    def needs(manager, name):
        raise ModuleNotFoundError("No module named 'jieba'", name="jieba")

    monkeypatch.setattr(tasks_module, "_top_level", needs)
    with pytest.raises(InputError, match="tasks=lost: needs the package jieba: pip install jieba"):
        load_tasks(["lost"], manager, tokenizer, LENGTH)
