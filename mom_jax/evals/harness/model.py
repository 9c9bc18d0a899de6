"""A model as lm-evaluation-harness knows it."""

import math
from collections import defaultdict
from typing import Any

import jax
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mom_jax.data.tokenizers import Tokenizer, token_rows
from mom_jax.errors import InputError
from mom_jax.evals.harness.answers import Prompt, Sampling, answer_prompts
from mom_jax.evals.harness.likelihood import Pair, Place, score_pairs
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.terminal import counting

# What a task may ask of generation besides sampling; the rest (beams, penalties) would change answers in silence.
_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}


class HarnessModel(TemplateLM):
    """A model and its tokenizer behind the harness's three questions.

    Text is encoded without a begin token, a context together with what follows it. What has no context is
    scored after the begin token, or after the end token where the tokenizer has none, as the harness does for
    PyTorch models. Rows of the embedding without a token are never answers. Each answer goes to the harness's cache
    as soon as its batch is done, so an evaluation that was killed goes on from there.

    Args:
        model: its parameters may be sharded; then use this under ``jax.set_mesh``.
        tokenizer: the model's own.
        max_length: the most tokens the model reads at once, prompt and answer together.
        batch_size: rows of every batch.
        place: moves a batch to the devices.

    Raises:
        InputError: the tokenizer has more tokens than the model's embedding rows.
    """

    def __init__(
        self,
        model: MoMForCausalLM,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_size: int,
        place: Place = jax.device_put,
    ):
        super().__init__()
        self.model, self.text = model, tokenizer
        self.max_length, self.batch_size, self.place = max_length, batch_size, place
        self._allowed = token_rows(tokenizer, model.config.vocab_size)

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return self.text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What precedes a text that has no context."""
        return self.text.eos_id if self.text.bos_id is None else self.text.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text, without special tokens."""
        return self.text.encode(string).tolist()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation after its context, and whether it is the greedy one.

        Raises:
            InputError: a continuation that has no token of its own.
        """
        encoded = [(request.args, *self._encode_pair(*request.args)) for request in requests]
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both, split as the harness does for PyTorch models: spaces between them belong to the continuation.

        Where the continuation only lengthens the context's last token, the split is before that token.
        """
        bare = context.rstrip()
        whole, before = self.tok_encode(context + continuation), self.tok_encode(bare)
        if len(whole) <= len(before):
            same = (old == new for old, new in zip(before, whole, strict=False))
            before = before[: next((i for i, equal in enumerate(same) if not equal), len(whole))]
        if len(whole) == len(before):
            remedy = f"gives no token after {bare[-40:]!r}, so it has no likelihood; fix the task's choices or targets"
            raise InputError("continuation", repr(continuation), remedy)
        return before or [self.prefix_token_id], whole[len(before) :]

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
        pairs = [Pair(context, continuation) for _, context, continuation in requests]
        results: dict[int, tuple[float, bool]] = {}
        with counting("log-likelihoods", len(pairs), quiet=disable_tqdm) as advance:
            for i, log_likelihood, is_greedy in self._scores(pairs):
                results[i] = log_likelihood, is_greedy
                self.cache_hook.add_partial("loglikelihood", requests[i][0], results[i])
                advance()
        return [results[i] for i in range(len(pairs))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts: each token once, with as much context as its window holds."""
        pairs, owners = [], []
        left = np.zeros(len(requests), int)  # windows of each text that are not scored yet
        for i, (text,) in enumerate(request.args for request in requests):
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            for window in map(make_disjoint_window, windows):
                pairs.append(Pair(*window))
                owners.append(i)
                left[i] += 1
        totals = [0.0] * len(requests)
        with counting("windows", len(pairs), quiet=disable_tqdm) as advance:
            for number, log_likelihood, _ in self._scores(pairs):
                i = owners[number]
                totals[i] += log_likelihood
                left[i] -= 1
                if not left[i]:
                    self.cache_hook.add_partial("loglikelihood_rolling", requests[i].args, totals[i])
                advance()
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continues prompts up to a stop string, the end token, or the number of tokens a task allows."""
        kinds: dict[Sampling, list[int]] = defaultdict(list)
        prompts = []
        for i, request in enumerate(requests):
            sampling, prompt = self._prompt(*request.args)
            kinds[sampling].append(i)
            prompts.append(prompt)
        texts: dict[int, str] = {}
        with counting("answers", len(prompts), quiet=disable_tqdm) as advance:
            for sampling, members in kinds.items():
                answers = answer_prompts(
                    self.model,
                    self.text,
                    [prompts[i] for i in members],
                    sampling,
                    max_length=self.max_length,
                    batch_size=self.batch_size,
                    allowed=self._allowed,
                )
                for number, text in answers:
                    texts[members[number]] = text
                    self.cache_hook.add_partial("generate_until", requests[members[number]].args, text)
                    advance()
        return [texts[i] for i in range(len(prompts))]

    def _scores(self, pairs: list[Pair]):
        return score_pairs(self.model, pairs, self.max_length, self.batch_size, self.place, self._allowed)

    def _prompt(self, context: str, options: dict[str, Any]) -> tuple[Sampling, Prompt]:
        settings = _settings(options)
        unknown = sorted(set(settings) - _KNOWN)
        if unknown:
            remedy = f"is not available; choose among {', '.join(sorted(_KNOWN))}"
            raise InputError("generation_kwargs", ", ".join(unknown), remedy)
        sampling, temperature = Sampling(), settings.get("temperature", 1.0)
        if settings["do_sample"] and temperature != 0:
            # As PyTorch models of the harness have it, a top_k of 0 or beyond the vocabulary keeps all tokens.
            top_k = settings.get("top_k") or None
            sampling = Sampling(temperature, top_k and min(top_k, self.model.config.vocab_size), settings.get("top_p"))
        _check_generation(temperature, settings["until"], settings["max_gen_toks"])
        ids = self.tok_encode(context) or [self.prefix_token_id]
        return sampling, Prompt(ids, tuple(settings["until"]), settings["max_gen_toks"])


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """The options in the harness's one form; numbers may be text, as 1e-1 is in its YAML."""
    try:
        settings: dict[str, Any] = dict(normalize_gen_kwargs(options))
        for name, kind in (("temperature", float), ("top_p", float), ("top_k", int)):
            if settings.get(name) is not None:
                settings[name] = kind(settings[name])
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError("generation_kwargs", options, f"must hold numbers ({error})") from error
    if not isinstance(settings["do_sample"], bool):
        raise InputError("generation_kwargs", f"do_sample: {settings['do_sample']!r}", "must be true or false")
    return settings


def _check_generation(temperature: float, until: list[Any], max_tokens: int) -> None:
    if not 0 <= temperature < math.inf:
        raise InputError(
            "generation_kwargs", f"temperature: {temperature}", "must be 0 (greedy) or positive, and finite"
        )
    if not all(stop is None or isinstance(stop, str) for stop in until):
        raise InputError("generation_kwargs", f"until: {until}", "must be text, or a list of texts")
    if max_tokens < 1:
        raise InputError("generation_kwargs", f"max_gen_toks: {max_tokens}", "must be at least 1")
