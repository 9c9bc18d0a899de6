"""Kernels for the recurrences of `mom_jax.ops`, on plain arrays: Pallas for TPU, Triton for GPU, one also Mosaic GPU.

    delta_rule       gated delta rule, delta rule            tpu, gpu
    scalar_decay     simple GLA, RetNet, Mamba2              tpu, gpu
    vector_decay     GLA, HGRN2, RWKV6                       tpu, gpu
    rank_one_decay   DPLR: RWKV7, Kimi delta attention       tpu, gpu
    grouped_matmul   products of row groups with weights     gpu
    mixing           rows of a token: sum, norm and gate     gpu
    short_conv       convolution, SiLU and norm of rows      tpu, gpu

A kernel is ``pallas_kernels.<platform>.<name>.<name>(q, k, v, g, ..., chunks, initial_state, scale)``: packed rows in
chunks that belong to one segment each (`pallas_kernels.chunks`), differentiable in all its arrays. It raises
`Unsupported` for inputs that it has no program for. Its module holds its table of configurations, ``CONFIGS``
(`pallas_kernels.configs`).
"""
