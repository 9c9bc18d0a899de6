# The stored arrays depend on every random draw below in its order, so the code stays as it ran.
# ruff: noqa: B905, C408, E402, E501, E731, SIM115
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportOptionalMemberAccess=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false, reportOptionalOperand=false, reportOptionalSubscript=false
"""Makes the stored arrays of tests/goldens from the PyTorch reference of MoM.

Runs the models and operators of flash-linear-attention 0.6.0 on a CPU, forward and backward,
through Triton's interpreter. Nothing of that library is copied or edited: mom_jax/evals/reference changes what
it needs there at run time. Needs this package, Python 3.11, torch 2.13.0 (CPU), triton 3.9.0,
transformers 5.23.0 and flash-linear-attention 0.6.0; about eight minutes on two cores.

    python tools/make_goldens.py [--only a,b,...] [--out tests/goldens]

Every .npz file holds:
    meta           JSON: what was run, differences observed, run times
    config         JSON: keyword arguments of the reference's MomConfig
    sd/<name>      parameters under the reference's names, float16 that holds the exact values used
    in/*           input_ids, labels, attention_mask, cu_seqlens, or an operator's inputs
    out/*          logits, loss (total), lm_loss, aux_loss, router_logits/<layer>; hidden_states/1 is
                   the output of the first block
    grad/<name>    float32 d(loss)/d(parameter), evaluation mode; low 10 mantissa bits rounded away
                   (relative error at most 2^-14)
"""

import argparse
import contextlib
import json
import math
import os
import sys
import time
import warnings
from functools import partial

warnings.filterwarnings("ignore")

import numpy as np
import torch
import torch.nn.functional as F

torch.set_num_threads(1)

# ----------------------------------------------------------------------------------------
# 1. what fla needs on a CPU; the modules say what is changed and why
# ----------------------------------------------------------------------------------------
from mom_jax.evals.reference import interpreter

interpreter.enable()

from fla.layers.mom import MomAttention
from fla.models.mom import MomConfig, MomForCausalLM
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from triton.runtime.autotuner import Autotuner

from mom_jax.evals.reference import operators

interpreter.convert_loops()
torch.Tensor.argsort = interpreter.stable_argsort
# FusedCrossEntropyLoss wants a device, so every config has fuse_cross_entropy=False (torch.nn.CrossEntropyLoss: same
# mathematics).


# ----------------------------------------------------------------------------------------
# 2. an independent definition, as a check of the interpreter
# ----------------------------------------------------------------------------------------
def dense_mom(layer, x, mask=None):
    """Independent definition of the eval-mode layer: loop over (sequence, memory), no sorting, no packing."""
    B, T, _ = x.shape
    H = layer.num_heads
    keep = torch.ones(B, T, dtype=torch.bool) if mask is None else mask.bool()
    logits = layer.gate(x)
    w, sel = logits.float().softmax(-1).topk(layer.topk, -1)
    w = w / w.sum(-1, keepdim=True)
    heads = lambda z: z.unflatten(-1, (H, -1))

    def run(xs, fk, fv, fb, fa):
        q, k, v = (
            heads(operators.short_convolution(p(xs), c.weight)[0])
            for p, c in ((layer.q_proj, layer.q_conv1d), (fk, layer.k_conv1d), (fv, layer.v_conv1d))
        )
        g = -layer.A_log.exp() * F.softplus(fa(xs) + layer.dt_bias)
        return operators.delta_rule(q, k, v, g, fb(xs).sigmoid(), use_qk_l2norm_in_kernel=True)[0]

    o = torch.zeros(B, T, H, layer.head_v_dim)
    for b in range(B):
        for e in range(layer.num_memories):
            hit = ((sel[b] == e).any(-1) & keep[b]).nonzero().flatten()
            if not len(hit):
                continue
            if layer.single_kv_proj:
                fs = (layer.shared_k, layer.shared_v, layer.shared_b, layer.shared_a)
            else:
                fs = (layer.k_proj[e], layer.v_proj[e], layer.b_proj[e], layer.a_proj[e])
            oe = run(x[b : b + 1, hit], *fs)[0]
            we = (w[b] * (sel[b] == e)).sum(-1)[hit]
            o[b, hit] += oe * we[:, None, None]
        if layer.shared_mem:
            t = keep[b].nonzero().flatten()
            o[b, t] += run(x[b : b + 1, t], layer.shared_k, layer.shared_v, layer.shared_b, layer.shared_a)[0]
    if layer.use_output_gate:
        o = operators.rms_norm(o, layer.o_norm.weight, layer.o_norm.eps) * F.silu(
            layer.g_proj(x).unflatten(-1, (H, -1))
        )
    else:
        o = operators.rms_norm(o, layer.o_norm.weight, layer.o_norm.eps)
    return layer.o_proj(o.flatten(2)), logits


# ----------------------------------------------------------------------------------------
# 3. helpers
# ----------------------------------------------------------------------------------------
BASE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_heads=2,
    head_dim=16,
    vocab_size=64,
    intermediate_size=32,
    num_memories=4,
    topk=2,
    shared_mem=True,
    fuse_cross_entropy=False,
    use_cache=False,
)
LOG = {}


def fill(model, seed):
    """Deterministic weights, exactly representable in float16 (matrices on a 1/64 grid: compress well)."""
    gen = torch.Generator().manual_seed(seed)
    rn = lambda p: torch.randn(p.shape, generator=gen)
    with torch.no_grad():
        for n, p in sorted(model.named_parameters()):
            if n.endswith("A_log"):
                v = torch.log(1 + 15 * torch.rand(p.shape, generator=gen)).half().float()
            elif n.endswith("dt_bias"):
                dt = torch.exp(torch.rand(p.shape, generator=gen) * math.log(100.0) + math.log(1e-3))
                v = (dt + torch.log(-torch.expm1(-dt))).half().float()
            elif "norm" in n:
                v = torch.round((1 + 0.1 * rn(p)) * 256) / 256
            else:
                std = 0.3 if ("conv1d" in n or n.endswith("gate.weight") or "embeddings" in n) else 0.12
                v = torch.round(std * rn(p) * 64) / 64
            p.copy_(v)
    return model


def build(seed, **kw):
    cfg = {**BASE, **kw}
    torch.manual_seed(seed)
    m = fill(MomForCausalLM(MomConfig(**cfg)), seed).eval()
    interpreter.convert_loops()
    return cfg, m


def cut(t):
    """float32 with the low 10 mantissa bits rounded away (relative error <= 2^-14): compresses better"""
    i = npy(t).astype(np.float32).view(np.int32).astype(np.int64)
    return (((i + 512) >> 10) << 10).astype(np.int32).view(np.float32)


def npy(t):
    return t.detach().cpu().numpy()


def pack_sd(m):
    d = {}
    for n, t in m.state_dict().items():
        a = npy(t.float())
        assert (a.astype(np.float16).astype(np.float32) == a).all(), n
        d["sd/" + n] = a.astype(np.float16)
    return d


def maxdiff(a, b):
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).abs().max()), float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def finite(d, name):
    for k, v in d.items():
        if isinstance(v, np.ndarray) and v.dtype.kind == "f":
            assert np.isfinite(v).all(), (name, k)
            if (
                k.startswith(("grad/", "out/logits")) and v.size > 1 and name != "m_tiny"
            ):  # m_tiny: some gradients may be exactly zero
                assert np.abs(v).max() > 0, (name, k, "all zero")


def save(name, arrays, meta, config=None):
    finite(arrays, name)
    arrays = dict(arrays)
    arrays["meta"] = np.array(json.dumps(meta))
    if config is not None:
        arrays["config"] = np.array(json.dumps(config))
    path = os.path.join(OUT, name + ".npz")
    np.savez_compressed(path, **arrays)
    meta["bytes"] = os.path.getsize(path)
    LOG[name] = meta
    print(f"{name}: {meta['bytes'] / 1024:.0f} KiB", json.dumps(meta), flush=True)


def topk_gap(router_logits, k):
    """smallest gap between the last selected and first rejected probability (a flip breaks parity)"""
    g = 1.0
    for r in router_logits:
        p = r.float().softmax(-1).sort(-1, descending=True).values
        if p.shape[0] and p.shape[1] > k:
            g = min(g, float((p[:, k - 1] - p[:, k]).min()), float((p[:, : k - 1] - p[:, 1:k]).min()) if k > 1 else 1.0)
    return g


def build_ids(seed, B, T, mask, **kw):
    cfg, m = build(seed, **kw)
    ids = torch.randint(3, cfg["vocab_size"], (B, T), generator=torch.Generator().manual_seed(1000 + seed))
    return cfg, m, (ids if mask is None else ids.masked_fill(mask == 0, 0))


def best_seed(seed, B, T, mask, n=16, **kw):
    """Seed (of n) with the largest routing margin on valid tokens, so that float noise cannot flip the top-k."""
    best = (-1.0, seed)
    for s in range(100 * seed, 100 * seed + n):
        cfg, m, ids = build_ids(s, B, T, mask, **kw)
        with operators.naive_operators(), torch.no_grad():
            rl = m(ids, use_cache=False, **({} if mask is None else {"attention_mask": mask})).router_logits
        rl = [r if mask is None else r[mask.flatten().bool()] for r in rl if r.shape[0]]
        best = max(best, (topk_gap(rl, cfg["topk"]), s))
    return best[1]


def model_case(name, seed, B, T, mask=None, grads=True, cu_seqlens=None, note="", sd=True, **kw):
    if cu_seqlens is None:
        seed = best_seed(seed, B, T, mask, **kw)
    cfg, m, ids = build_ids(seed, B, T, mask, **kw)
    labels = ids.clone()
    if mask is not None:
        labels = labels.masked_fill(mask == 0, -100)
    call = dict(input_ids=ids, labels=labels, output_hidden_states=True)
    if mask is not None:
        call["attention_mask"] = mask
    if cu_seqlens is not None:
        call["cu_seqlens"] = cu_seqlens
    meta = dict(
        case=name,
        seed=seed,
        B=B,
        T=T,
        eval_mode=True,
        note=note,
        no_grad_mode="fused_recurrent" if T <= 64 else "chunk",
        grad_mode="chunk",
    )
    t = time.time()
    with torch.no_grad():
        o = m(**call)
    meta["t_fwd_nograd_s"] = round(time.time() - t, 1)
    loss_lm = F.cross_entropy(o.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    a = {
        "in/input_ids": npy(ids).astype(np.int32),
        "in/labels": npy(labels).astype(np.int32),
        "out/logits": npy(o.logits),
        "out/loss": npy(o.loss),
        "out/aux_loss": npy(o.aux_loss),
        "out/lm_loss": npy(loss_lm),
    }
    if mask is not None:
        a["in/attention_mask"] = npy(mask).astype(np.int32)
    if cu_seqlens is not None:
        a["in/cu_seqlens"] = npy(cu_seqlens).astype(np.int32)
    for i, r in enumerate(o.router_logits):
        a[f"out/router_logits/{i}"] = npy(r)
    a["out/hidden_states/1"] = npy(o.hidden_states[1])  # output of layer 0 (after final norm if there is one layer)
    meta.update(
        loss=float(o.loss),
        lm_loss=float(loss_lm),
        aux_loss=float(o.aux_loss),
        loss_identity_err=abs(float(o.loss) - float(loss_lm) - m.aux_loss_scale * float(o.aux_loss)),
        logits_std=float(o.logits.std()),
        min_topk_prob_gap=topk_gap(
            [r if mask is None else r[mask.flatten().bool()] for r in o.router_logits if r.shape[0]], cfg["topk"]
        ),
    )
    sel = [
        torch.bincount(r.topk(cfg["topk"], -1).indices.flatten(), minlength=cfg["num_memories"]).tolist()
        for r in o.router_logits
        if r.shape[0]
    ]
    meta["tokens_per_memory"] = sel
    if sd:
        a.update(pack_sd(m))
    g1 = {}
    if grads:
        t = time.time()
        og = m(**call)
        meta["t_fwd_grad_s"] = round(time.time() - t, 1)
        meta["logits_grad_vs_nograd_maxabs"] = maxdiff(og.logits, o.logits)[0]
        t = time.time()
        og.loss.backward()
        meta["t_bwd_s"] = round(time.time() - t, 1)
        none = [n for n, p in m.named_parameters() if p.grad is None]
        meta["params_without_grad"] = none
        g1 = {n: p.grad.clone() for n, p in m.named_parameters() if p.grad is not None}
        for n, g in g1.items():
            a["grad/" + n] = cut(g)
    # same official model code, all Triton ops replaced by torch
    m.zero_grad()
    t = time.time()
    with operators.naive_operators(), contextlib.nullcontext() if grads else torch.no_grad():
        ot = m(**call)
        if grads:
            ot.loss.backward()
    meta["t_torch_only_s"] = round(time.time() - t, 1)
    meta["logits_interp_vs_torch_only_maxabs"] = maxdiff(o.logits, ot.logits)[0]
    if grads:
        w = max(
            (
                (maxdiff(g1[n], p.grad)[0] / max(float(p.grad.abs().max()), 1e-7), maxdiff(g1[n], p.grad)[0], n)
                for n, p in m.named_parameters()
                if n in g1
            )
        )
        meta["grad_interp_vs_torch_only_worst"] = dict(rel_to_tensor_max=w[0], maxabs=w[1], name=w[2])
    if cu_seqlens is None:  # fully independent definition, layer by layer
        worst = 0.0
        with torch.no_grad():
            for i, blk in enumerate(m.model.layers):
                if isinstance(blk.attn, MomAttention):
                    x = blk.attn_norm(o.hidden_states[i])
                    y = blk.attn(x, attention_mask=mask)[0]
                    z, _ = dense_mom(blk.attn, x, mask)
                    keep = slice(None) if mask is None else mask.bool()
                    worst = max(worst, maxdiff(y[keep], z[keep])[0])
        meta["layer_vs_dense_definition_maxabs"] = worst
    save(name, a, meta, cfg)
    return m, call, o, g1


# ----------------------------------------------------------------------------------------
# 4. model cases
# ----------------------------------------------------------------------------------------
def left_mask(B, T, pads):
    m = torch.ones(B, T, dtype=torch.long)
    for b, p in enumerate(pads):
        m[b, :p] = 0
    return m


def case_a():
    m, call, o, ge = model_case(
        "a_default",
        1,
        2,
        70,
        hidden_size=64,
        head_dim=32,
        vocab_size=128,
        intermediate_size=32,
        note="default routing: 4 memories, top-2, shared memory; T>64 so chunk also without autograd",
    )
    m.train()
    m.zero_grad()
    ot = m(**call)
    ot.loss.backward()
    gd = {n: float((p.grad - ge[n]).norm() / ge[n].norm()) for n, p in m.named_parameters()}
    save(
        "a_default_train",
        {"out/logits_row0": npy(ot.logits[0]), "out/loss": npy(ot.loss)},
        dict(
            case="a_default_train",
            note="case a_default with model.train(): the short convolutions run over the concatenated memories",
            loss_eval=float(o.loss),
            loss_train=float(ot.loss),
            logits_train_vs_eval=maxdiff(ot.logits, o.logits),
            grad_rel_l2_train_vs_eval=dict(
                median=float(np.median(list(gd.values()))), worst=max((v, n) for n, v in gd.items())
            ),
        ),
    )
    m.eval()


def case_j():
    with operators.with_attention(), operators.repaired_hybrid(BASE["num_memories"]):
        model_case(
            "j_hybrid_patched",
            9,
            2,
            40,
            attn={"layers": [1], "num_heads": 2, "num_kv_heads": 2, "window_size": None},
            note="NOT the untouched official model: hybrid MoM crashes in 0.6.0. Attention.forward wrapped to "
            "return an empty router_logits, flash_attn_func replaced by torch SDPA; rotary runs in Triton.",
        )


def case_k():
    # T=64 uses the weights chosen for T=150
    global best_seed
    keep, s150 = best_seed, best_seed(10, 1, 150, None, num_hidden_layers=1)
    best_seed = lambda *a, **k: s150
    model_case(
        "k_T64_fused",
        10,
        1,
        64,
        grads=False,
        sd=False,
        num_hidden_layers=1,
        note="weights: sd of k_T150_chunk. T<=64 without autograd: fused_recurrent",
    )
    model_case(
        "k_T150_chunk",
        10,
        1,
        150,
        num_hidden_layers=1,
        note="same weights as k_T64_fused; segments longer than one chunk of 64",
    )
    best_seed = keep


def states_of(cache, m):
    d = {}
    for i in range(m.config.num_hidden_layers):
        st = cache[i]
        for j, s in enumerate(st["recurrent_state"]):
            d[f"layer{i}/recurrent/{'routed' if j == 0 else 'shared'}"] = npy(s).copy()
        for nm, (r, s) in zip("qkv", st["conv_state"]):
            d[f"layer{i}/conv_{nm}/routed"] = npy(r).copy()
            if s is not None:
                d[f"layer{i}/conv_{nm}/shared"] = npy(s).copy()
    return d


def case_h():
    B, P, S = 2, 20, 8
    seed = best_seed(13, B, P + S, None, use_cache=True)
    cfg, m, ids = build_ids(seed, B, P + S, None, use_cache=True)
    a = {"in/input_ids": npy(ids).astype(np.int32)}
    t = time.time()
    with torch.no_grad():
        full = m(ids, use_cache=False)
        o = m(ids[:, :P], use_cache=True)
        seq_len_reported = int(o.past_key_values.get_seq_length())
        a["out/prefill_logits"] = npy(o.logits)
        for k_, v_ in states_of(o.past_key_values, m).items():
            if k_.startswith("layer0"):
                a["state_prefill/" + k_] = v_
        steps = []
        for s in range(S):
            o = m(ids[:, P + s : P + s + 1], past_key_values=o.past_key_values, use_cache=True)
            steps.append(o.logits[:, 0])
        for k_, v_ in states_of(o.past_key_values, m).items():
            a["state_final/" + k_] = v_
    st = torch.stack(steps, 1)
    a["out/step_logits"] = npy(st)
    meta = dict(
        case="h_cache",
        seed=seed,
        B=B,
        prefill=P,
        steps=S,
        t_s=round(time.time() - t, 1),
        step_vs_full_maxabs=maxdiff(st, full.logits[:, P:])[0],
        modes="prefill and steps: fused_recurrent (no autograd, T<=64)",
        prefill_vs_full_maxabs=maxdiff(torch.from_numpy(a["out/prefill_logits"]), full.logits[:, :P])[0],
        get_seq_length_after_prefill=seq_len_reported,
        min_topk_prob_gap=topk_gap(list(full.router_logits), cfg["topk"]),
        layout="recurrent: [M*B (memory-major) | B, H, V, K] (v first); conv: [M*B | B, D, W], newest token last; "
        "step logits are for the position of the fed token",
    )
    a.update(pack_sd(m))
    save("h_cache", a, meta, cfg)


def case_layer():
    """MomAttention alone with its own constructor defaults (eps 1e-5, no shared memory)."""
    kw = dict(hidden_size=32, head_dim=16, num_heads=2, expand_v=2, num_memories=8, topk=2)
    torch.manual_seed(20)
    layer = fill(MomAttention(layer_idx=0, **kw), 20).eval()
    x = torch.randn(2, 33, 32, generator=torch.Generator().manual_seed(21))
    dy = torch.randn(2, 33, 32, generator=torch.Generator().manual_seed(22))
    with torch.no_grad():
        y0, _, _, rl = layer(x)
        z, _ = dense_mom(layer, x)
    xg = x.clone().requires_grad_()
    y, _, _, _ = layer(xg)
    (y * dy).sum().backward()
    a = {"in/x": npy(x), "in/dy": npy(dy), "out/y": npy(y0), "out/router_logits": npy(rl), "grad/x": npy(xg.grad)}
    for n in (
        "A_log",
        "dt_bias",
        "gate.weight",
        "q_conv1d.weight",
        "k_conv1d.weight",
        "v_conv1d.weight",
        "o_norm.weight",
    ):
        a["grad/" + n] = npy(dict(layer.named_parameters())[n].grad)
    a.update(pack_sd(layer))
    save(
        "layer_defaults",
        a,
        dict(
            case="layer_defaults",
            norm_eps=1e-5,
            grad_vs_nograd=maxdiff(y, y0)[0],
            vs_dense_definition_maxabs=maxdiff(y0, z)[0],
            min_topk_prob_gap=topk_gap([rl], 2),
            note="grad of sum(y*dy)",
        ),
        kw,
    )


# ----------------------------------------------------------------------------------------
# 5. op-level goldens
# ----------------------------------------------------------------------------------------
def op_gdr():
    """chunk (interpreter) and fused_recurrent (interpreter) against fla's naive recurrence, varlen, v-first state."""
    gen = torch.Generator().manual_seed(31)
    rn = lambda *s: torch.round(64 * torch.randn(*s, generator=gen)) / 64
    cu = torch.tensor([0, 3, 67, 68, 138, 155])
    T, H, K, V, N = 155, 1, 16, 24, 5
    ins = dict(
        q=rn(1, T, H, K),
        k=rn(1, T, H, K),
        v=rn(1, T, H, V),
        g=-F.softplus(rn(1, T, H)),
        beta=torch.sigmoid(rn(1, T, H)),
        initial_state=rn(N, H, V, K),
    )
    do, dht = rn(1, T, H, V), rn(N, H, V, K)

    def run(fn):
        x = {n: t.clone().requires_grad_() for n, t in ins.items()}
        o, s = fn(**x, output_final_state=True, use_qk_l2norm_in_kernel=True, state_v_first=True, cu_seqlens=cu)
        ((o * do).sum() + (s * dht).sum()).backward()
        return o, s, {n: t.grad for n, t in x.items()}

    meta = dict(
        case="op_gdr_varlen",
        note="state [N,H,V,K]; l2norm eps 1e-6; scale K**-0.5; g natural-log decay; "
        "out/* and grad/* are from naive_recurrent_gated_delta_rule per segment",
    )
    on, sn, gn = run(operators.delta_rule)
    t = time.time()
    oc, sc, gc = run(chunk_gated_delta_rule)
    meta["t_chunk_fwd_bwd_s"] = round(time.time() - t, 1)
    with torch.no_grad():
        of, sf = fused_recurrent_gated_delta_rule(
            **ins, output_final_state=True, use_qk_l2norm_in_kernel=True, state_v_first=True, cu_seqlens=cu
        )
    meta["chunk_vs_naive"] = {
        "o": maxdiff(oc, on),
        "state": maxdiff(sc, sn),
        **{"d" + n: maxdiff(gc[n], gn[n]) for n in gn},
    }
    meta["fused_recurrent_vs_naive"] = {"o": maxdiff(of, on), "state": maxdiff(sf, sn)}
    interpreter.use_tiles(lambda configurations: configurations[0])
    for m in list(sys.modules.values()):
        if getattr(m, "__name__", "").startswith("fla."):
            for v_ in list(vars(m).values()):
                f = v_
                while f is not None and not isinstance(f, Autotuner) and hasattr(f, "fn"):
                    f = f.fn
                if isinstance(f, Autotuner):
                    f.cache.clear()
    oc1, sc1, gc1 = run(chunk_gated_delta_rule)
    interpreter.use_tiles(interpreter.largest_tiles)
    meta["chunk_first_config_vs_big_config"] = {
        "o": maxdiff(oc1, oc)[0],
        "state": maxdiff(sc1, sc)[0],
        **{"d" + n: maxdiff(gc1[n], gc[n])[0] for n in gn},
    }
    a = {"in/" + n: npy(t) for n, t in ins.items()}
    a.update(
        {
            "in/cu_seqlens": npy(cu).astype(np.int32),
            "in/do": npy(do),
            "in/dht": npy(dht),
            "out/o": npy(on),
            "out/state": npy(sn),
        }
    )
    a.update({"grad/" + n: npy(t) for n, t in gn.items()})
    save("op_gdr_varlen", a, meta)


def op_naive():
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.gsa.naive import naive_recurrent_gsa
    from fla.ops.kda.naive import naive_recurrent_kda
    from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
    from fla.ops.retention.naive import naive_retention
    from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
    from fla.ops.titans.naive import chunk_titans_linear_ref
    from fla.ops.ttt.naive import chunk_ttt_linear_ref

    gen = torch.Generator().manual_seed(41)
    rn = lambda *s: torch.round(64 * torch.randn(*s, generator=gen)) / 64
    ru = lambda *s: torch.rand(*s, generator=gen)
    B, T, H, K, V, M = 1, 19, 2, 8, 12, 6
    bthk, bthv, bth = (B, T, H, K), (B, T, H, V), (B, T, H)
    S0 = lambda: 0.5 * rn(B, H, K, V)
    unit = lambda x: F.normalize(x, dim=-1)
    hf = lambda f: lambda **x: (lambda o, *s: (o.transpose(1, 2), *s))(*f(**x))  # head-first result -> [B,T,H,*]
    tr = lambda x: x.transpose(1, 2)
    R = {}

    R["linear_attn"] = (
        "naive_recurrent_linear_attn(normalize=False)",
        dict(q=rn(*bthk), k=rn(*bthk), v=rn(*bthv), initial_state=S0()),
        lambda **x: naive_recurrent_linear_attn(**x, output_final_state=True),
    )
    R["linear_attn_norm"] = (
        "naive_recurrent_linear_attn(normalize=True), no initial state, state=(S, cumulative k)",
        dict(q=ru(*bthk), k=ru(*bthk), v=rn(*bthv)),
        lambda **x: (lambda o, s: (o, s[0], s[1]))(
            *naive_recurrent_linear_attn(**x, output_final_state=True, normalize=True)
        ),
    )
    gam = torch.log1p(-(2.0 ** (-5.0 - torch.arange(H, dtype=torch.float))))

    def retention(q, k, v):
        o = tr(naive_retention(tr(q), tr(k), tr(v)))
        o2, s = naive_recurrent_simple_gla(q, k, v, gam.expand(B, T, H), output_final_state=True)
        EXTRA["retention_naive_vs_simple_gla"] = maxdiff(o, o2)[0]
        return o, s

    R["retention"] = (
        "naive_retention (head-first, no state); state from naive_recurrent_simple_gla with g=log(1-2^(-5-h))",
        dict(q=rn(*bthk), k=rn(*bthk), v=rn(*bthv)),
        retention,
    )
    R["simple_gla"] = (
        "naive_recurrent_simple_gla, g [B,T,H]",
        dict(q=rn(*bthk), k=rn(*bthk), v=rn(*bthv), g=-F.softplus(rn(*bth)), initial_state=S0()),
        lambda **x: naive_recurrent_simple_gla(**x),
    )
    li, nl = 1, 4
    lg = -(8 / H * (1 - li / nl)) * torch.arange(H, dtype=torch.float)
    R["lightning"] = (
        "naive_recurrent_simple_gla with g = -(8/H*(1-layer_idx/num_layers))*head, layer_idx=1 num_layers=4",
        dict(q=rn(*bthk), k=rn(*bthk), v=rn(*bthv), initial_state=S0()),
        lambda **x: naive_recurrent_simple_gla(**x, g=lg.expand(B, T, H)),
    )
    R["mamba2"] = (
        "naive_recurrent_simple_gla, scale=1.0: q=C, k=B, v=x*dt, g=-A*dt",
        dict(q=rn(*bthk), k=rn(*bthk), v=rn(*bthv), g=-F.softplus(rn(*bth)), initial_state=S0()),
        lambda **x: naive_recurrent_simple_gla(**x, scale=1.0),
    )
    R["gla"] = (
        "naive_recurrent_gla, gk [B,T,H,K]",
        dict(q=rn(*bthk), k=rn(*bthk), v=rn(*bthv), gk=F.logsigmoid(rn(*bthk)), initial_state=S0()),
        lambda **x: naive_recurrent_gla(**x, output_final_state=True),
    )
    R["hgrn2"] = (
        "naive_recurrent_gla with k = 1-exp(gk)",
        dict(q=rn(*bthk), v=rn(*bthv), gk=F.logsigmoid(rn(*bthk)), initial_state=S0()),
        lambda q, v, gk, initial_state: naive_recurrent_gla(q, 1 - gk.exp(), v, gk, initial_state, True),
    )
    R["delta_rule"] = (
        "delta_rule_recurrence (head-first inside; stored [B,T,H,*])",
        dict(q=rn(*bthk), k=unit(rn(*bthk)), v=rn(*bthv), beta=torch.sigmoid(rn(*bth)), initial_state=S0()),
        hf(lambda q, k, v, beta, initial_state: delta_rule_recurrence(tr(q), tr(k), tr(v), tr(beta), initial_state)),
    )
    R["gated_delta_rule"] = (
        "naive_recurrent_gated_delta_rule",
        dict(
            q=rn(*bthk),
            k=unit(rn(*bthk)),
            v=rn(*bthv),
            g=-F.softplus(rn(*bth)),
            beta=torch.sigmoid(rn(*bth)),
            initial_state=S0(),
        ),
        lambda **x: naive_recurrent_gated_delta_rule(**x, output_final_state=True),
    )
    R["rwkv6"] = (
        "naive_recurrent_rwkv6 (head-first inside; stored [B,T,H,*]), w = log decay, u [H,K]",
        dict(q=rn(*bthk), k=rn(*bthk), v=rn(*bthv), w=-torch.exp(rn(*bthk)), u=rn(H, K), initial_state=S0()),
        hf(
            lambda q, k, v, w, u, initial_state: naive_recurrent_rwkv6(
                tr(q), tr(k), tr(v), tr(w), u, initial_state=initial_state, output_final_state=True
            )
        ),
    )
    kk = unit(rn(*bthk))
    R["rwkv7"] = (
        "dplr_recurrence (head-first inside; stored [B,T,H,*]); naive has scale K**-0.5, chunk_rwkv7 default is 1.0; "
        "a=-kk, b=kk*sigmoid(.), gk=log decay",
        dict(
            r=rn(*bthk),
            w=-0.606531 * torch.sigmoid(rn(*bthk)),
            k=rn(*bthk),
            v=rn(*bthv),
            a=-kk,
            b=kk * torch.sigmoid(rn(*bthk)),
            initial_state=S0(),
        ),
        hf(
            lambda r, w, k, v, a, b, initial_state: dplr_recurrence(
                tr(r), tr(k), tr(v), tr(a), tr(b), tr(w), initial_state
            )
        ),
    )
    R["gsa"] = (
        "naive_recurrent_gsa, s [B,T,H,M], g [B,T,H,M] log decay, state=(hk [B,H,K,M], hv [B,H,M,V]); here s is independent of g, uniform in [0,1)",
        dict(
            q=rn(*bthk),
            k=rn(*bthk),
            v=rn(*bthv),
            s=ru(B, T, H, M),
            g=F.logsigmoid(rn(B, T, H, M)),
            hk0=0.5 * rn(B, H, K, M),
            hv0=0.5 * rn(B, H, M, V),
        ),
        lambda q, k, v, s, g, hk0, hv0: (lambda o, st: (o, st[0], st[1]))(
            *naive_recurrent_gsa(q, k, v, s, g, initial_state=(hk0, hv0), output_final_state=True)
        ),
    )
    R["kda"] = (
        "naive_recurrent_kda, g [B,T,H,K] log decay",
        dict(
            q=rn(*bthk),
            k=unit(rn(*bthk)),
            v=rn(*bthv),
            g=-F.softplus(rn(*bthk)),
            beta=torch.sigmoid(rn(*bth)),
            initial_state=S0(),
        ),
        lambda **x: naive_recurrent_kda(**x, output_final_state=True),
    )
    # square states, whole mini-batches only (T multiple of 8)
    T2, D = 24, 8
    sq = (B, T2, H, D)
    R["ttt"] = (
        "chunk_ttt_linear_ref, mini_batch_size=8, eta [B,T,H,1], w,b [H,D], states h [B,H,D,D], hb [B,H,1,D]",
        dict(
            q=rn(*sq),
            k=unit(rn(*sq)),
            v=rn(*sq),
            w=1 + 0.1 * rn(H, D),
            b=0.1 * rn(H, D),
            eta=0.1 * ru(B, T2, H, 1),
            initial_state=0.3 * rn(B, H, D, D),
            initial_state_bias=0.1 * rn(B, H, 1, D),
        ),
        lambda q, **x: chunk_ttt_linear_ref(q.clone(), **x, mini_batch_size=8, output_final_state=True),
    )

    def titans(**x):
        o, s = chunk_titans_linear_ref(**x, chunk_size=8, output_final_state=True, use_chunk=False)
        with torch.no_grad():
            o2, s2 = chunk_titans_linear_ref(**x, chunk_size=8, output_final_state=True, use_chunk=True)
        EXTRA["titans_sequential_vs_chunk"] = (maxdiff(o2, o), maxdiff(s2, s))
        return o, s

    R["titans"] = (
        "chunk_titans_linear_ref(use_chunk=False, chunk_size=8) -> titans_linear; theta, alpha, eta [B,T,H,1]; w,b [H,D]",
        dict(
            q=rn(*sq),
            k=unit(rn(*sq)),
            v=rn(*sq),
            w=1 + 0.1 * rn(H, D),
            b=0.1 * rn(H, D),
            theta=0.02 * ru(B, T2, H, 1) + 1e-3,
            alpha=0.1 * ru(B, T2, H, 1) + 0.01,
            eta=0.3 * ru(B, T2, H, 1) + 0.05,
            initial_state=0.3 * rn(B, H, D, D),
        ),
        titans,
    )

    for name, (src, ins, fn) in R.items():
        EXTRA.clear()
        t = time.time()
        x = {n: v.detach().clone().contiguous().requires_grad_() for n, v in ins.items()}
        o, *st = fn(**x)
        do, ds = rn(*o.shape), [rn(*s.shape) for s in st]
        ((o * do).sum() + sum((s * d).sum() for s, d in zip(st, ds))).backward()
        a = {"in/" + n: npy(v) for n, v in x.items()}
        a["in/do"], a["out/o"] = npy(do), npy(o)
        for i, (s, d) in enumerate(zip(st, ds)):
            a[f"in/dstate{i}"], a[f"out/state{i}"] = npy(d), npy(s)
        for n, v in x.items():
            if v.grad is not None:
                a["grad/" + n] = npy(v.grad)
        save(
            "op_naive_" + name,
            a,
            dict(
                case=name,
                fn=src,
                layout="[B,T,H,D] for all sequences; state [B,H,K,V] unless noted",
                shapes={n: list(v.shape) for n, v in x.items()},
                no_grad_for=[n for n, v in x.items() if v.grad is None],
                o_std=float(o.std()),
                t_s=round(time.time() - t, 2),
                **EXTRA,
            ),
        )


EXTRA = {}


CASES = dict(
    a=case_a,
    b=partial(model_case, "b_noshared", 2, 2, 40, shared_mem=False),
    c=partial(model_case, "c_single_kv", 3, 2, 40, single_kv_proj=True),
    d=partial(
        model_case,
        "d_top1of3",
        4,
        2,
        44,
        num_memories=3,
        topk=1,
        num_hidden_layers=1,
        note="top-1: normalised weight is exactly 1, so gate.weight gets gradient from the aux loss only",
    ),
    e=partial(model_case, "e_expand_v2", 5, 1, 40, expand_v=2.0, num_hidden_layers=1),
    f=partial(
        model_case,
        "f_tied",
        6,
        2,
        40,
        tie_word_embeddings=True,
        num_hidden_layers=1,
        note="grad of the tied tensor is under model.embeddings.weight",
    ),
    g=partial(model_case, "g_leftpad", 7, 3, 48, mask=left_mask(3, 48, [0, 7, 19]), num_hidden_layers=1),
    h=case_h,
    i=partial(model_case, "i_nogate", 8, 2, 40, use_output_gate=False, num_hidden_layers=1),
    j=case_j,
    k=case_k,
    l=partial(
        model_case,
        "l_cu_seqlens",
        11,
        1,
        45,
        cu_seqlens=torch.tensor([0, 9, 40, 45]),
        grads=False,
        note="packed varlen input through cu_seqlens; router_logits/aux loss include the left padding rows (B*max_len)",
    ),
    m=partial(
        model_case,
        "m_tiny",
        12,
        2,
        6,
        num_memories=6,
        num_hidden_layers=1,
        note="empty memories and segments shorter than conv_size (pad_for_conv)",
    ),
    layer=case_layer,
    op_gdr=op_gdr,
    op_naive=op_naive,
)

if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--only", default=",".join(CASES))
    ap.add_argument("--out", default="tests/goldens")
    args = ap.parse_args()
    OUT = args.out
    os.makedirs(OUT, exist_ok=True)
    lp = os.path.join(OUT, "summary.json")
    log = json.load(open(lp, encoding="utf-8")) if os.path.exists(lp) else {}
    for c in args.only.split(","):
        t = time.time()
        CASES[c]()
        print(f"== {c}: {time.time() - t:.0f} s", flush=True)
        with open(lp, "w", encoding="utf-8") as file:  # what is done stays when a later case fails
            json.dump(log | LOG, file, indent=1)
