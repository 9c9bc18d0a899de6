"""Memory rules, one module each, and where to find them by name. Importing this imports no JAX.

A rule of one's own needs no place here: its name is ``package.module:Class``.
"""

RULES = {
    "gated_deltanet": "mom_jax.layers.rules.gated_deltanet:GatedDeltaNet",
    "deltanet": "mom_jax.layers.rules.deltanet:DeltaNet",
    "kda": "mom_jax.layers.rules.kda:KDA",
    "gated_deltanet2": "mom_jax.layers.rules.gated_deltanet2:GatedDeltaNet2",
    "gated_deltaproduct": "mom_jax.layers.rules.gated_deltaproduct:GatedDeltaProduct",
    "erase_then_delta": "mom_jax.layers.rules.erase_then_delta:EraseThenDelta",
    "comba": "mom_jax.layers.rules.comba:Comba",
    "linear_attention": "mom_jax.layers.rules.linear_attention:LinearAttention",
    "retnet": "mom_jax.layers.rules.linear_attention:RetNet",
    "lightning": "mom_jax.layers.rules.linear_attention:Lightning",
    "mamba2": "mom_jax.layers.rules.mamba2:Mamba2",
    "mamba3": "mom_jax.layers.rules.mamba3:Mamba3",
    "gla": "mom_jax.layers.rules.gla:GLA",
    "hgrn2": "mom_jax.layers.rules.hgrn2:HGRN2",
    "gsa": "mom_jax.layers.rules.gsa:GSA",
    "raven": "mom_jax.layers.rules.raven:Raven",
    "sse": "mom_jax.layers.rules.sse:SSE",
    "mesanet": "mom_jax.layers.rules.mesanet:MesaNet",
    "log_linear_mamba2": "mom_jax.layers.rules.log_linear:LogLinearMamba2",
    "log_linear_gla": "mom_jax.layers.rules.log_linear:LogLinearGLA",
    "sparse_delta_memory": "mom_jax.layers.rules.sparse_delta_memory:SparseDeltaMemory",
    "rwkv6": "mom_jax.layers.rules.rwkv6:RWKV6",
    "rwkv7": "mom_jax.layers.rules.rwkv7:RWKV7",
    "ttt": "mom_jax.layers.rules.ttt:TTTLinear",
    "titans": "mom_jax.layers.rules.titans:Titans",
}
