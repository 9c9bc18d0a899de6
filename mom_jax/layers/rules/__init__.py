"""Memory rules, one module each, and where to find them by name. Importing this imports no JAX.

A rule of one's own needs no place here: its name is ``package.module:Class``.
"""

RULES = {
    "gated_deltanet": "mom_jax.layers.rules.gated_deltanet:GatedDeltaNet",
    "deltanet": "mom_jax.layers.rules.deltanet:DeltaNet",
    "kda": "mom_jax.layers.rules.kda:KDA",
    "linear_attention": "mom_jax.layers.rules.linear_attention:LinearAttention",
    "retnet": "mom_jax.layers.rules.linear_attention:RetNet",
    "lightning": "mom_jax.layers.rules.linear_attention:Lightning",
    "mamba2": "mom_jax.layers.rules.mamba2:Mamba2",
    "gla": "mom_jax.layers.rules.gla:GLA",
    "hgrn2": "mom_jax.layers.rules.hgrn2:HGRN2",
    "gsa": "mom_jax.layers.rules.gsa:GSA",
    "rwkv6": "mom_jax.layers.rules.rwkv6:RWKV6",
    "rwkv7": "mom_jax.layers.rules.rwkv7:RWKV7",
    "ttt": "mom_jax.layers.rules.ttt:TTTLinear",
    "titans": "mom_jax.layers.rules.titans:Titans",
}
