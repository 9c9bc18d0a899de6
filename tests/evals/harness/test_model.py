"""Answers to the harness's three questions against direct computations from the model's logits."""

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM

import mom_jax.evals.harness.answers as answers
from mom_jax import generate
from mom_jax.errors import InputError
from mom_jax.evals.harness.likelihood import Pair, padded_length, score_pairs
from mom_jax.evals.harness.model import HarnessModel, to_device

LENGTH = 48
PAIRS = [("the cat", " sat on a mat"), ("x", "y"), ("", "no context"), ("a" * 70, " long"), (" ", "spaces"), ("é", "ü")]
TEXTS = ["short", "a text of more tokens than one window of the model holds, " * 3, "z"]
PROMPTS = ["the cat", "a", "of more tokens than the model reads at once, so that its beginning is cut off " * 2, ""]


def asked(kind, *arguments):
    """Requests as a task makes them."""
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


@pytest.fixture(scope="module")
def lm(model, tokenizer) -> HarnessModel:
    return HarnessModel(model, tokenizer, max_length=LENGTH, batch_size=4)


@pytest.fixture(scope="module")
def likelihoods(lm):
    return lm.loglikelihood(asked("loglikelihood", *PAIRS))


def by_hand(log_probabilities, context, continuation):
    """(log-likelihood, whether greedy) of a continuation after the last tokens that the model reads."""
    whole = (context + continuation)[-LENGTH - 1 :]
    table = log_probabilities(whole[:-1])[-len(continuation) :]
    return table[np.arange(len(continuation)), continuation].sum(), list(table.argmax(-1)) == continuation


@pytest.mark.parametrize("case", range(len(PAIRS)), ids=["plain", "one", "no context", "cut", "spaces", "two bytes"])
def test_log_likelihood(case, likelihoods, log_probabilities):
    """Of each continuation, whatever the padding; a text without context follows the begin token."""
    context, continuation = (list(text.encode()) for text in PAIRS[case])
    if PAIRS[case][0].strip() == "":
        context, continuation = [256], context + continuation  # spaces that end a context belong to what follows
    expected, greedy = by_hand(log_probabilities, context, continuation)
    assert likelihoods[case][0] == pytest.approx(expected, rel=1e-5)
    assert likelihoods[case][1] == greedy


def test_greedy_is_seen(model, greedy, log_probabilities):
    """The likeliest continuation is greedy, and one wrong token in it spoils that."""
    context, best = list(PROMPTS[0].encode()), greedy[0][:3]
    wrong = [best[0], (best[1] + 1) % 256, best[2]]
    scores = {s.pair: s for s in score_pairs(model, [Pair(context, best), Pair(context, wrong)], LENGTH, 4, to_device)}
    assert scores[0].is_greedy and not scores[1].is_greedy
    assert scores[0].log_likelihood == pytest.approx(by_hand(log_probabilities, context, best)[0], rel=1e-5)


def test_batches_change_nothing(model, tokenizer, likelihoods):
    """All at once with rows to spare, and in another order."""
    other, order = HarnessModel(model, tokenizer, max_length=LENGTH, batch_size=8), [5, 3, 1, 0, 2, 4]
    found = other.loglikelihood(asked("loglikelihood", *(PAIRS[i] for i in order)), disable_tqdm=True)
    for i, (value, greedy) in zip(order, found, strict=True):
        assert value == pytest.approx(likelihoods[i][0], rel=1e-5) and greedy == likelihoods[i][1]


def test_few_lengths():
    """Rows of all lengths take few shapes."""
    assert sorted({padded_length(n) for n in range(1, 2049)}) == [32, 64, 128, 256, 512, 1024, 2048]


def test_a_continuation_beyond_the_window_is_refused(lm):
    with pytest.raises(InputError, match="sequence_length=48: is shorter than a continuation of 49 tokens"):
        lm.loglikelihood(asked("loglikelihood", ("a", "b" * 49)), disable_tqdm=True)


@pytest.mark.parametrize("case", range(len(TEXTS)), ids=["short", "windows", "one token"])
def test_rolling_scores_every_token_once(case, lm, log_probabilities):
    """The first window begins with the begin token; the last is filled up with tokens that are already scored."""
    ids = list(TEXTS[case].encode())
    total, scored = 0.0, 0
    while scored < len(ids):
        stop = min(scored + LENGTH, len(ids))
        start = max(0, stop - LENGTH)
        inputs = [256, *ids][start:stop]
        table = log_probabilities(inputs)[scored - start :]
        total += table[np.arange(stop - scored), ids[scored:stop]].sum()
        scored = stop
    (found,) = lm.loglikelihood_rolling(asked("loglikelihood_rolling", (TEXTS[case],)), disable_tqdm=True)
    assert found == pytest.approx(total, rel=1e-5)


@pytest.fixture(scope="module")
def greedy(model) -> list[list[int]]:
    """20 greedy tokens of `mom_jax.generate` after what is read of each prompt."""
    ids, mask = np.zeros((2, len(PROMPTS), 32), np.int32)
    for i, prompt in enumerate(PROMPTS):
        row = list(prompt.encode())[-(LENGTH - 20) :] or [256]
        ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
    return np.asarray(generate(model, ids, 20, attention_mask=mask))[:, 32:].tolist()


@pytest.fixture(scope="module")
def options(greedy, tokenizer) -> list[dict]:
    """For each prompt, a character of its greedy answer that makes it end somewhere; or a number of tokens."""
    stops = [tokenizer.decode(row)[i] for row, i in zip(greedy, (3, 0, 0, 7), strict=True)]
    found = [{"until": [stop, "no such text"], "max_gen_toks": 20} for stop in stops]
    return [*found[:2], {"until": [], "max_gen_toks": 20}, {**found[3], "max_gen_toks": 5}]


def test_generation_is_that_of_generate_cut_at_the_stop(tokenizer, lm, greedy, options):
    """Stops and numbers of tokens of their own in one batch; the end token ends an answer too."""
    found = lm.generate_until(asked("generate_until", *zip(PROMPTS, options, strict=True)))
    assert found == [cut(tokenizer, *pair) for pair in zip(greedy, options, strict=True)]
    assert len(set(map(len, found))) > 2


def cut(tokenizer, ids, wanted):
    """The text of greedy tokens up to the end token, a stop, or the number of tokens."""
    ids = ids[: wanted["max_gen_toks"]]
    text = tokenizer.decode(ids[: ids.index(257)] if 257 in ids else ids)
    for stop in wanted["until"]:
        text = text.split(stop)[0]
    return text


def test_a_batch_ends_with_its_last_answer(lm, options, monkeypatch):
    """No block is decoded after every row has met its stop."""
    asked_for = []
    blocks = answers.generate_blocks
    monkeypatch.setattr(
        answers, "generate_blocks", lambda *a, **k: (asked_for.append(0) or block for block in blocks(*a, **k))
    )
    lm.generate_until(asked("generate_until", (PROMPTS[0], {**options[0], "max_gen_toks": 40})))
    assert len(asked_for) == 1


def test_sampling_is_seeded_and_unknown_options_are_refused(lm):
    options = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_gen_toks": 8}
    first, second = (lm.generate_until(asked("generate_until", ("the cat", options))) for _ in range(2))
    assert first == second
    with pytest.raises(InputError, match="generation_kwargs=num_beams: is not available; known are do_sample"):
        lm.generate_until(asked("generate_until", ("the cat", {"num_beams": 4})))
    with pytest.raises(InputError, match="sequence_length=48: leaves no room for a prompt beside an answer of 48"):
        lm.generate_until(asked("generate_until", ("the cat", {"max_gen_toks": 48})))


class Killed(Exception):
    """Stands for a kill after some batches."""


def test_a_killed_evaluation_goes_on(model, tokenizer, likelihoods, tmp_path, monkeypatch):
    """What was answered before is not asked again, and comes out the same."""
    lm = HarnessModel(model, tokenizer, max_length=LENGTH, batch_size=4)
    asked_pairs = []

    def one_batch(pairs):
        for score in score_pairs(model, pairs, LENGTH, 4, to_device):
            if len(asked_pairs) == 4:
                raise Killed
            asked_pairs.append(score.pair)
            yield score

    monkeypatch.setattr(lm, "_scores", one_batch)
    requests = asked("loglikelihood", *PAIRS)
    with pytest.raises(Killed):
        CachingLM(lm, str(tmp_path / "answers.db")).loglikelihood(requests)
    monkeypatch.setattr(
        lm, "_scores", lambda pairs: asked_pairs.append(len(pairs)) or score_pairs(model, pairs, LENGTH, 4, to_device)
    )
    found = CachingLM(lm, str(tmp_path / "answers.db")).loglikelihood(requests)
    assert asked_pairs[4:] == [2]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in likelihoods], rel=1e-5)
