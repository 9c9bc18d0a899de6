"""Answers to the harness's three questions against direct computations from the model's logits."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import device_put
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM, TemplateLM
from tokenizers import Tokenizer, models

from mom_jax import generate
from mom_jax.data.tokenizer_kinds import JsonTokenizer
from mom_jax.decoding.slots import Slots
from mom_jax.errors import InputError
from mom_jax.evals.harness.evaluate import fingerprint
from mom_jax.evals.harness.likelihood import Pair, padded_length, score_pairs
from mom_jax.evals.harness.model import HarnessModel

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
    scores = {s.pair: s for s in score_pairs(model, [Pair(context, best), Pair(context, wrong)], LENGTH, 4, device_put)}
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
    asked_for, decode = [], Slots.decode
    monkeypatch.setattr(Slots, "decode", lambda *args: (asked_for.append(0), decode(*args))[1])
    lm.generate_until(asked("generate_until", (PROMPTS[0], {**options[0], "max_gen_toks": 40})))
    assert len(asked_for) == 1


def test_numbers_may_be_text(lm):
    """As 1e-1 is for the harness, which reads YAML 1.1."""
    sampling, prompt = lm._prompt(
        "the", {"do_sample": True, "temperature": "1e-1", "top_p": "0.9", "max_gen_toks": "3"}
    )
    assert (sampling.temperature, sampling.top_p, prompt.max_tokens) == (0.1, 0.9, 3)


def test_sampling_is_seeded(lm):
    options = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "max_gen_toks": 8}
    first, second = (lm.generate_until(asked("generate_until", ("the cat", options))) for _ in range(2))
    assert first == second


@pytest.fixture(scope="module")
def merging(model):
    """Twelve tokens, some of which a continuation makes of a context's last letter; characters beyond them vanish."""
    letters = ["</s>", *"abcx .", "ab", " a", "abc", " ab", "  "]
    merges = [("a", "b"), (" ", "a"), ("ab", "c"), (" ", "ab"), (" ", " ")]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(letters)}, merges))
    return HarnessModel(model, JsonTokenizer(backend, "merging", None), max_length=LENGTH, batch_size=4)


@pytest.mark.parametrize("context", ["", " ", "x", "x ", "ab", "xa", "x a  ", "x\n"])
@pytest.mark.parametrize("continuation", [" a", "a", "b", "bc", " ab x", "abcabc", ".", "zx"])
def test_pairs_are_split_as_the_harness_does(merging, context, continuation):
    """Where its split leaves something to score; elsewhere the context's last token is scored too."""
    before, after = merging._encode_pair(context, continuation)
    assert before and after
    whole = merging.tok_encode(context + continuation)
    theirs = TemplateLM._encode_pair(merging, context, continuation) if context else ([], whole)
    if theirs[1]:
        assert (before, after) == (theirs[0] or [merging.prefix_token_id], theirs[1])
    else:
        assert before + after == whole or before + after == [merging.prefix_token_id, *whole]


def test_a_continuation_that_merges_with_its_context_is_scored(merging, log_probabilities):
    """The token of both, after what precedes it."""
    (found,) = merging.loglikelihood(asked("loglikelihood", ("xa", "b")), disable_tqdm=True)
    x, ab = merging.tok_encode("xab")
    assert found[0] == pytest.approx(log_probabilities([x])[0, ab], rel=1e-5) and found[0] < 0


@pytest.mark.parametrize("pair", [("xa", ""), ("", ""), ("x", "zz"), (" ", "")])
def test_a_continuation_without_tokens_is_refused(merging, pair):
    """It would win every choice, with a likelihood of 1."""
    if pair == (" ", ""):
        assert merging._encode_pair(*pair) == ([merging.prefix_token_id], merging.tok_encode(" "))
        return
    with pytest.raises(InputError, match=r"continuation='.*': gives no token after '.*', so it has no likelihood"):
        merging.loglikelihood(asked("loglikelihood", ("x", "a"), pair), disable_tqdm=True)


def test_pairs_without_tokens_are_refused(model):
    with pytest.raises(InputError, match="continuation or context without tokens"):
        list(score_pairs(model, [Pair([1], [2]), Pair([1], [])], LENGTH, 4, device_put))


def test_an_empty_text_has_likelihood_one(lm):
    """Among others, and alone."""
    found = lm.loglikelihood_rolling(asked("loglikelihood_rolling", ("z",), ("",)), disable_tqdm=True)
    assert found[0] < 0 and found[1] == 0
    assert lm.loglikelihood_rolling(asked("loglikelihood_rolling", ("",)), disable_tqdm=True) == [0]


def test_rows_without_a_token_are_neither_greedy_nor_chosen(model, merging, log_probabilities):
    """The model has 264 rows, the tokenizer twelve tokens."""
    context = [1, 2, 3]
    first, second = log_probabilities(context)[-1].argsort()[::-1][:2].tolist()
    candidates = np.arange(264) != first
    pairs = [Pair(context, [first]), Pair(context, [second])]
    scores = {s.pair: s.is_greedy for s in score_pairs(model, pairs, LENGTH, 4, device_put, candidates)}
    assert scores == {0: False, 1: True}
    for options in ({}, {"do_sample": True, "temperature": 5.0, "top_k": 0}, {"do_sample": True, "top_k": 1000}):
        (text,) = merging.generate_until(asked("generate_until", ("xab", {"max_gen_toks": 8, **options})))
        assert set(text) <= set("abcx .")


@pytest.mark.parametrize("until", [[], [""], [None], None, "", ["", "no such text"]])
def test_empty_stops_stop_nothing(lm, until):
    wanted = {"max_gen_toks": 8}
    texts = lm.generate_until(
        asked("generate_until", ("the cat", {**wanted, "until": until}), ("the cat", wanted)), disable_tqdm=True
    )
    assert texts[0] == texts[1] != ""


@pytest.mark.parametrize(
    "options,message",
    [
        ({"until": [5]}, r"until: \[5\]: must be text, or a list of texts"),
        ({"max_gen_toks": 0}, "max_gen_toks: 0: must be at least 1"),
        ({"do_sample": True, "temperature": float("nan")}, r"temperature: nan: must be 0 \(greedy\) or positive"),
        ({"temperature": -1.0}, r"temperature: -1\.0: must be 0"),
        ({"do_sample": True, "temperature": 1.0, "top_p": 0.0}, r"top_p=0\.0: must lie in"),
        ({"temperature": "warm"}, "^generation_kwargs=.*must hold numbers"),
        ({"max_gen_toks": [3]}, "^generation_kwargs=.*must hold numbers"),
        ({"max_gen_toks": float("inf")}, "^generation_kwargs=.*must hold numbers"),
        ({"do_sample": True, "top_p": "most"}, "^generation_kwargs=.*must hold numbers"),
        ({"do_sample": "false"}, "^generation_kwargs=.*do_sample: 'false'.*must be true or false"),
        ({"num_beams": 4}, "generation_kwargs=num_beams: is not available; choose among do_sample"),
        ({"max_gen_toks": 48}, "sequence_length=48: leaves no room for a prompt beside an answer of 48"),
    ],
)
def test_generation_that_makes_no_sense_is_refused(lm, options, message):
    with pytest.raises(InputError, match=message):
        lm.generate_until(asked("generate_until", ("the cat", {"max_gen_toks": 8, **options})), disable_tqdm=True)


def test_a_model_of_nan_gives_no_scores(model, tokenizer):
    """Each of the three questions says so, and so does the name under which answers would be kept."""
    broken = nnx.clone(model)
    broken.norm.weight[...] = jnp.full_like(broken.norm.weight[...], jnp.nan)
    lm = HarnessModel(broken, tokenizer, max_length=LENGTH, batch_size=4)
    questions = {
        "log-likelihoods": lambda: lm.loglikelihood(asked("loglikelihood", ("a", "b")), disable_tqdm=True),
        "log-likelihoods ": lambda: lm.loglikelihood_rolling(asked("rolling", ("a",)), disable_tqdm=True),
        "logits": lambda: lm.generate_until(asked("generate_until", ("a", {"max_gen_toks": 2})), disable_tqdm=True),
        "parameters": lambda: fingerprint(lm),
    }
    for what, ask in questions.items():
        with pytest.raises(InputError, match=f"model=NaN: its {what.strip()} are not finite"):
            ask()


def test_a_tokenizer_beyond_the_model_is_refused(model, tokenizer):
    tokenizer = type("Larger", (type(tokenizer),), {"vocab_size": 265, "ids": range(265)})()
    with pytest.raises(InputError, match=r"tokenizer=bytes: has 265 tokens but the model 264 rows"):
        HarnessModel(model, tokenizer, max_length=LENGTH, batch_size=4)


class Killed(Exception):
    """Stands for a kill after some batches."""


def test_a_killed_evaluation_goes_on(model, tokenizer, likelihoods, tmp_path, monkeypatch):
    """What was answered before is not asked again, and comes out the same."""
    lm = HarnessModel(model, tokenizer, max_length=LENGTH, batch_size=4)
    asked_pairs = []

    def one_batch(pairs):
        for score in score_pairs(model, pairs, LENGTH, 4, device_put):
            if len(asked_pairs) == 4:
                raise Killed
            asked_pairs.append(score.pair)
            yield score

    monkeypatch.setattr(lm, "_scores", one_batch)
    requests = asked("loglikelihood", *PAIRS)
    with pytest.raises(Killed):
        CachingLM(lm, str(tmp_path / "answers.db")).loglikelihood(requests)
    monkeypatch.setattr(
        lm, "_scores", lambda pairs: asked_pairs.append(len(pairs)) or score_pairs(model, pairs, LENGTH, 4, device_put)
    )
    found = CachingLM(lm, str(tmp_path / "answers.db")).loglikelihood(requests)
    assert asked_pairs[4:] == [2]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in likelihoods], rel=1e-5)
