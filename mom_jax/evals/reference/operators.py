# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""Plain PyTorch for the operators of the reference's MoM, and repairs of what the library cannot run.

Import it after `interpreter.enable` on a machine without a GPU. Like the kernels they stand for, the operators compute
in float32 and round their results to the dtype of their input. The recurrence is the library's own naive one.
"""

import contextlib
from typing import Any

import fla.layers.attn as fla_attention
import fla.layers.mom as fla_mom
import torch
import torch.nn.functional as F
from fla.modules import FusedRMSNormGated, GatedMLP, RMSNorm, ShortConvolution
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mom_jax.evals.reference.interpreter import replaced


def l2_norm(x: Tensor) -> Tensor:
    """``x`` over its length in the last axis."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS normalisation over the last axis, in float32."""
    x = x.float()
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * weight.float()


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    state_v_first: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gated delta rule with the interface of the library's kernels, here the one for short rows.

    Args:
        q, k: [B, T, H, K]; v: [B, T, H, V]; g, beta: [B, T, H].
        initial_state: [S, H, K, V], or [S, H, V, K] with ``state_v_first``; one for each segment.
        cu_seqlens: bounds of S segments that lie behind each other in the only row.

    Returns:
        Outputs like ``v``, and the states after each segment if they are asked for.
    """
    q, k = q.float(), k.float()
    if use_qk_l2norm_in_kernel:
        q, k = l2_norm(q), l2_norm(k)
    if initial_state is not None and state_v_first:
        initial_state = initial_state.transpose(-1, -2)
    inputs = [q, k, v, beta, g]
    if cu_seqlens is not None:
        # Rows of zeros neither write nor decay, so segments of different lengths can share a batch.
        lengths = cu_seqlens.diff().tolist()
        inputs = [pad_sequence(x[0].split(lengths), batch_first=True) for x in inputs]
    o, state = naive_recurrent_gated_delta_rule(*inputs, scale, initial_state, True)
    if cu_seqlens is not None:
        o = torch.cat([row[:length] for row, length in zip(o, lengths, strict=True)])[None]
    if state_v_first:
        state = state.transpose(-1, -2)
    return o.to(v.dtype), (state if output_final_state else None)


def chunked_delta_rule(q: Tensor, k: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
    """`delta_rule` for the chunked kernels, which normalise q and k on their own and round the result.

    They round more inside (states at chunk borders, the inverse), so in bfloat16 their error is larger than this one's.
    """
    if options.pop("use_qk_l2norm_in_kernel", False):
        q, k = (l2_norm(x.float()).to(x.dtype) for x in (q, k))
    return delta_rule(q, k, **options)


def short_convolution(
    x: Tensor, weight: Tensor, cache: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Causal convolution of each channel, then SiLU.

    Args:
        x: [B, T, D]; segments behind each other in one row if ``cu_seqlens`` gives their bounds.
        weight: [D, 1, W].
        cache: [S, D, W], the last W inputs of each segment before this call.

    Returns:
        Outputs like ``x``, and the last W inputs of each segment after this call.
    """
    segments = x if cu_seqlens is None else x[0].split(cu_seqlens.diff().tolist())
    taps, outputs, states = weight.shape[-1], [], []
    for i, segment in enumerate(segments):
        before = x.new_zeros(x.shape[-1], taps) if cache is None else cache[i].to(x.dtype)
        window = torch.cat([before, segment.T], 1)
        outputs.append(F.silu(F.conv1d(window[None, :, 1:].float(), weight.float(), groups=len(weight)))[0].T)
        states.append(window[:, -taps:])
    y = torch.stack(outputs) if cu_seqlens is None else torch.cat(outputs)[None]
    return y.to(x.dtype), torch.stack(states)


def _convolution_forward(self, x, cache=None, output_final_state=False, cu_seqlens=None, **_: Any):
    y, state = short_convolution(x, self.weight, cache, cu_seqlens)
    return y, (state if output_final_state else None)


def _norm_forward(self, x, residual=None, prenorm=False, residual_in_fp32=False):
    total = x.float() if residual is None else x.float() + residual.float()
    y = rms_norm(total, self.weight, self.eps).to(x.dtype)
    return (y, total if residual_in_fp32 else total.to(x.dtype)) if prenorm else y


def _gated_norm_forward(self, x, g, **_: Any):
    return (rms_norm(x, self.weight, self.eps) * F.silu(g.float())).to(x.dtype)


def _mlp_forward(self, x, **_: Any):
    gated = F.silu(self.gate_proj(x).float()) * self.up_proj(x).float()
    return self.down_proj(gated.to(x.dtype))


def naive_operators() -> contextlib.AbstractContextManager[None]:
    """Replaces every Triton operator of a MoM model inside the context; only rotary embeddings keep theirs."""
    return replaced(
        (fla_mom, "chunk_gated_delta_rule", chunked_delta_rule),
        (fla_mom, "fused_recurrent_gated_delta_rule", delta_rule),
        (ShortConvolution, "forward", _convolution_forward),
        (RMSNorm, "forward", _norm_forward),
        (FusedRMSNormGated, "forward", _gated_norm_forward),
        (GatedMLP, "forward", _mlp_forward),
    )


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
    """Softmax attention with the interface of flash-attn: [B, T, H, K]; the last query sees the last key.

    Args:
        window_size: (tokens to the left that are seen besides the own one, or -1 for all; not used).
    """
    assert causal
    queries, keys = (torch.arange(x.shape[1], device=q.device) for x in (q, k))
    distance = (queries + len(keys) - len(queries))[:, None] - keys
    visible = distance >= 0 if window_size[0] < 0 else (distance >= 0) & (distance <= window_size[0])
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True).transpose(1, 2)


def with_attention() -> contextlib.AbstractContextManager[None]:
    """Puts `attention` where the library wants flash-attn, which needs a GPU."""
    return replaced((fla_attention, "flash_attn_func", attention))


def repaired_hybrid(num_memories: int) -> contextlib.AbstractContextManager[None]:
    """Lets blocks with softmax attention run inside the context.

    The library's MoM block expects router logits from its attention, which returns none: here it returns none of them
    as an array [0, M].
    """
    original = fla_attention.Attention.forward

    def forward(self, hidden_states, *args: Any, **kwargs: Any):
        return *original(self, hidden_states, *args, **kwargs), hidden_states.new_zeros(0, num_memories)

    return replaced((fla_attention.Attention, "forward", forward))
