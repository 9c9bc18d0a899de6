# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""A MoM checkpoint in the PyTorch reference, and its numbers as NumPy arrays."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mom_jax.errors import InputError
from mom_jax.evals.compare.records import Dtype, Record, as_mask
from mom_jax.evals.reference import interpreter
from mom_jax.evals.reference.install import Kernels


@contextlib.contextmanager
def running(kernels: Kernels, num_memories: int) -> Iterator[None]:
    """Prepares the library, which must not be imported yet, for the kernels that `choose_kernels` named.

    Inside the context tokens are sorted stably, and softmax-attention blocks run, with PyTorch's attention.
    """
    if kernels != "triton":
        interpreter.enable()
    warnings.filterwarnings("ignore", module="fla")
    from mom_jax.evals.reference import operators

    interpreter.convert_loops()
    with contextlib.ExitStack() as stack:
        stack.enter_context(interpreter.stable_sort())
        stack.enter_context(operators.with_attention())
        stack.enter_context(operators.repaired_hybrid(num_memories))
        if kernels == "naive":
            stack.enter_context(operators.naive_operators())
        yield


class Reference:
    """The reference's ``MomForCausalLM`` in evaluation mode; use it inside `running`.

    Args:
        directory: ``config.json`` and safetensors.
        dtype: of all parameters and activations.
        rounded: round the parameters to bfloat16 first, whatever ``dtype`` is.

    Raises:
        InputError: parameters are missing in the checkpoint, or it holds others.
    """

    def __init__(self, directory: str | Path, dtype: Dtype = "float32", rounded: bool = False):
        from fla.models.mom import MomForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        model, info = MomForCausalLM.from_pretrained(str(directory), dtype=torch.float32, output_loading_info=True)
        wrong = {kind: sorted(info[kind]) for kind in ("missing_keys", "unexpected_keys") if info[kind]}
        if wrong:
            raise InputError("reference", str(directory), f"does not fit the reference's model: {wrong}")
        model.config.fuse_cross_entropy = False  # the fused loss needs a GPU; the mathematics is the same
        if rounded:
            model.to(torch.bfloat16)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model: Any = model.to(device=self.device, dtype=getattr(torch, dtype)).eval()
        interpreter.convert_loops()

    def forward(self, ids: np.ndarray) -> Record:
        """As `Subject.forward`, without autograd."""
        with torch.no_grad():
            record: Record = {"embedded": _numpy(self.model.model.embeddings(self._tensor(ids)))}

        def keep(layer):
            return lambda module, args, output: record.update({f"hidden/{layer}": _numpy(output[0])})

        hooks = [block.register_forward_hook(keep(i)) for i, block in enumerate(self.model.model.layers)]
        try:
            with torch.no_grad():
                out = self.model(self._tensor(ids), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        for i, logits in enumerate(out.router_logits):
            record |= {f"{name}/{i}": value for name, value in self._routing(logits, ids.shape).items()}
        return {**record, "logits": _numpy(out.logits)}

    def block(self, layer: int, x: np.ndarray, cotangent: np.ndarray | None = None) -> Record:
        """As `Subject.block`."""
        block = self.model.model.layers[layer]
        weight = self.model.model.embeddings.weight
        inputs = torch.tensor(x, dtype=weight.dtype, device=self.device, requires_grad=cotangent is not None)
        with torch.set_grad_enabled(cotangent is not None):
            hidden, _, _, router_logits, *_ = block(inputs)
        if cotangent is None:
            return {"hidden": _numpy(hidden), **self._routing(router_logits, x.shape[:2])}
        block.zero_grad()
        hidden.backward(torch.tensor(cotangent, dtype=weight.dtype, device=self.device))
        gradients = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
        return {f"gradient/{name}": _numpy(value) for name, value in {**gradients, "x": inputs.grad}.items()}

    def _routing(self, logits: torch.Tensor, shape: tuple[int, ...]) -> Record:
        """Router logits, and the choice that the layer makes from them."""
        if not logits.numel():
            return {}
        logits = logits.reshape(*shape, -1)
        memories = logits.softmax(-1, dtype=torch.float32).topk(self.model.config.topk, -1).indices
        return {"router": _numpy(logits), "choices": as_mask(memories.cpu().numpy(), logits.shape[-1])}

    def loss_and_gradients(self, ids: np.ndarray) -> Record:
        """As `Subject.loss_and_gradients`."""
        self.model.zero_grad()
        tokens = self._tensor(ids)
        out = self.model(tokens, labels=tokens, use_cache=False)
        out.loss.backward()
        total, aux = out.loss.item(), out.aux_loss.item()
        record = {"loss/lm": total - self.model.aux_loss_scale * aux, "loss/aux": aux, "loss/total": total}
        for name, parameter in self.model.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            record[f"gradient/{name}"] = _numpy(gradient)
        self.model.zero_grad()
        return {name: np.asarray(value) for name, value in record.items()}

    @torch.no_grad()
    def decode(self, ids: np.ndarray, prefill: int) -> Record:
        """As `Subject.decode`."""
        out = self.model(self._tensor(ids[:, :prefill]), use_cache=True)
        first, steps = _numpy(out.logits), []
        for t in range(prefill, ids.shape[1]):
            out = self.model(self._tensor(ids[:, t : t + 1]), past_key_values=out.past_key_values, use_cache=True)
            steps.append(_numpy(out.logits))
        return {"decode/prefill": first, "decode/steps": np.concatenate(steps, 1)}

    @torch.no_grad()
    def continue_greedily(self, ids: np.ndarray, new_tokens: int) -> np.ndarray:
        """As `Subject.continue_greedily`, token by token through the cache."""
        out, tokens = self.model(self._tensor(ids), use_cache=True), []
        for _ in range(new_tokens):
            tokens.append(out.logits[:, -1:].argmax(-1))
            out = self.model(tokens[-1], past_key_values=out.past_key_values, use_cache=True)
        return torch.cat(tokens, 1).cpu().numpy()

    def _tensor(self, ids):
        return torch.as_tensor(np.asarray(ids, np.int64), device=self.device)


def gpu_available() -> bool:
    """Whether PyTorch sees a GPU."""
    return torch.cuda.is_available()


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
