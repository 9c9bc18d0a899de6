"""Plain PyTorch for layers of the library whose kernels a CPU cannot run: MesaNet, log-linear attention, Mamba-3.

Import it after `mom_jax.evals.reference.interpreter.enable`. The first two take the library's own naive operators; it
has none of Mamba-3's, whose kernel here is the equation of its paper (arXiv 2603.15569), token by token.
"""

import contextlib
import math

import fla.layers.log_linear_mamba2 as fla_log_linear
import fla.layers.mamba3 as fla_mamba3
import fla.layers.mesa_net as fla_mesa
import fla.ops.log_linear_attn.chunk  # noqa: F401 (whose operator is replaced)
import torch
from fla.ops.log_linear_attn.naive import naive_log_linear_attn
from fla.ops.mesa_net.naive import naive_mesa_net_exact

from mom_jax.evals.reference.interpreter import replaced
from mom_jax.evals.reference.operators import l2_norm


def _mesa(q, k, v, g, beta, lamb, h_kk_init=None, h_kv_init=None, **_):
    """Solved exactly; the kernel takes thirty steps."""
    return naive_mesa_net_exact(l2_norm(q.float()), l2_norm(k.float()), v, g, lamb, beta, h_kk_init, h_kv_init)


def _levels(q, k, v, g, level_scales, scale=1.0, **_):
    return naive_log_linear_attn(q, k, v, g, level_scales, scale), None


def _turned(x, theta):
    """Pairs of neighbouring channels as complex numbers; channels behind the last angle stay."""
    pairs = theta.shape[-1]
    both = torch.view_as_complex(x[..., : 2 * pairs].unflatten(-1, (pairs, 2)).contiguous())
    both = torch.view_as_real(both * torch.polar(torch.ones_like(theta), theta)).flatten(-2)
    return torch.cat([both, x[..., 2 * pairs :]], -1)


def _trapezoidal(*, Q, K, V, ADT, DT, Trap, Q_bias, K_bias, Angles, D, Z, **_):
    """Both ends of the interval between two tokens are written."""
    theta = torch.cumsum(math.pi * torch.tanh(Angles) * DT.mT[..., None], 1)
    q, k = _turned(Q + Q_bias, theta), _turned(K + K_bias, theta)
    decay, share = ADT.mT.exp(), Trap.mT.sigmoid()
    now, before = share * DT.mT, (1 - share) * DT.mT
    state, outputs = torch.zeros(V.shape[0], *k.shape[2:], V.shape[-1]), []
    for t in range(V.shape[1]):
        if t > 0:
            state = state + before[:, t, :, None, None] * k[:, t - 1, :, :, None] * V[:, t - 1, :, None]
        state = decay[:, t, :, None, None] * state + now[:, t, :, None, None] * k[:, t, :, :, None] * V[:, t, :, None]
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return (torch.stack(outputs, 1) + D[:, None] * V) * torch.nn.functional.silu(Z)


def _forward(self, hidden_states, *_, **__):
    """Without asking for a GPU."""
    return self.cuda_kernels_forward(hidden_states)[0], None, None


def plain_layers() -> contextlib.AbstractContextManager[None]:
    """Replaces the kernels inside the context."""
    return replaced(
        (fla_mesa, "chunk_mesa_net", _mesa),
        (fla_log_linear, "chunk_log_linear_attn", _levels),
        (fla_mamba3, "mamba3_siso_combined", _trapezoidal),
        (fla_mamba3.Mamba3, "forward", _forward),
        (fla_log_linear.LogLinearMamba2, "forward", _forward),
    )
