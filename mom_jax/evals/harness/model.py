"""A model as lm-evaluation-harness knows it."""

from collections import defaultdict
from typing import Any

import jax.numpy as jnp
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from mom_jax.data.tokenizers import Tokenizer
from mom_jax.errors import InputError
from mom_jax.evals.harness.answers import Prompt, Sampling, answer_prompts
from mom_jax.evals.harness.likelihood import Pair, Place, score_pairs
from mom_jax.models.lm import MoMForCausalLM

# What a task may ask of generation besides sampling; the rest (beams, penalties) would change answers in silence.
_KNOWN = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}


def to_device(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Puts a batch on the default device."""
    return {name: jnp.asarray(rows) for name, rows in batch.items()}


class HarnessModel(TemplateLM):
    """A model and its tokenizer behind the harness's three questions.

    Text is encoded without a begin token. What has no context is scored after the begin token, or after the
    end token where the tokenizer has none, as the harness does for PyTorch models. Each answer goes to the
    harness's cache as soon as its batch is done, so an evaluation that was killed goes on from there.

    Args:
        model: its parameters may be sharded; then use this under ``jax.set_mesh``.
        tokenizer: the model's own.
        max_length: the most tokens the model reads at once, prompt and answer together.
        batch_size: rows of every batch.
        place: moves a batch to the devices.
    """

    def __init__(
        self,
        model: MoMForCausalLM,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        batch_size: int,
        place: Place = to_device,
    ):
        super().__init__()
        self.model, self.text = model, tokenizer
        self.max_length, self.batch_size, self.place = max_length, batch_size, place

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

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
        # A context of nothing but spaces moves to the continuation and leaves no token behind.
        pairs = [Pair(context or [self.prefix_token_id], continuation) for _, context, continuation in requests]
        results: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(pairs), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for i, log_likelihood, is_greedy in self._scores(pairs):
                results[i] = log_likelihood, is_greedy
                self.cache_hook.add_partial("loglikelihood", requests[i][0], results[i])
                bar.update()
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
        with tqdm(total=len(pairs), desc="windows", disable=disable_tqdm) as bar:
            for number, log_likelihood, _ in self._scores(pairs):
                i = owners[number]
                totals[i] += log_likelihood
                left[i] -= 1
                if not left[i]:
                    self.cache_hook.add_partial("loglikelihood_rolling", requests[i].args, totals[i])
                bar.update()
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
        with tqdm(total=len(prompts), desc="answers", disable=disable_tqdm) as bar:
            for sampling, members in kinds.items():
                answers = answer_prompts(
                    self.model,
                    self.text,
                    [prompts[i] for i in members],
                    sampling,
                    max_length=self.max_length,
                    batch_size=self.batch_size,
                    place=self.place,
                )
                for number, text in answers:
                    texts[members[number]] = text
                    self.cache_hook.add_partial("generate_until", requests[members[number]].args, text)
                    bar.update()
        return [texts[i] for i in range(len(prompts))]

    def _scores(self, pairs: list[Pair]):
        return score_pairs(self.model, pairs, self.max_length, self.batch_size, self.place)

    def _prompt(self, context: str, options: dict[str, Any]) -> tuple[Sampling, Prompt]:
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(options))
        unknown = sorted(set(wanted) - _KNOWN)
        if unknown:
            remedy = f"is not available; known are {', '.join(sorted(_KNOWN))}"
            raise InputError("generation_kwargs", ", ".join(unknown), remedy)
        sampling, temperature = Sampling(), wanted.get("temperature", 1.0)
        if wanted["do_sample"] and temperature > 0:
            sampling = Sampling(temperature, wanted.get("top_k"), wanted.get("top_p"))
        ids = self.tok_encode(context) or [self.prefix_token_id]
        return sampling, Prompt(ids, tuple(wanted["until"]), wanted["max_gen_toks"])
