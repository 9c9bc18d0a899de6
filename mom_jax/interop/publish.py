"""Our configuration in the words of published model types: what `model_types` reads, written."""

from mom_jax.errors import InputError
from mom_jax.layers.rules.published import CONV, HEAD_SIZES, Fields, Published, renamed, without
from mom_jax.layers.rules.registry import find_rule, published_rules

_MIXTURE = ("num_memories", "topk", "shared_mem", "single_kv_proj", "aux_loss_scale")
_OURS = ("memory_rule", "mixture", "router_balance", "router_bias_rate", "reference_conv_leak", "compute_dtype", "impl")
_ROPE_THETA = 10000.0  # of attention layers in the reference's MoM, whatever its configuration says
_RULES_OWN = (
    "allow_neg_eigval",
    "feature_map",
    "norm_feature_map",
    "gate_logit_normalizer",
    "gate_low_rank_dim",
    "decay_low_rank_dim",
    "proj_low_rank_dim",
    "a_low_rank_dim",
    "num_slots",
    "mini_batch_size",
)
_OPTIONAL = ("use_output_gate", *CONV, *_RULES_OWN)
_MEMORY = ("num_heads", "head_dim", "expand_v", *_OPTIONAL)


def to_published(fields: Fields) -> tuple[str, str, Fields]:
    """The published model type of our configuration, the name of its class there, and its fields.

    Raises:
        InputError: the PyTorch library has no such model.
    """
    attn, rule = fields["attn"], fields["memory_rule"]
    if attn is not None and len(attn["layers"]) == fields["num_hidden_layers"]:
        fields = without(fields, *_MIXTURE, *_OURS, *_MEMORY, "attn") | without(attn, "layers")
        return "transformer", "TransformerForCausalLM", fields
    if fields["mixture"]:
        if fields["router_balance"] == "loss_free":
            remedy = "the PyTorch library's router has no bias; models trained with auxiliary or none can be published"
            raise InputError("router_balance", "loss_free", remedy)
        if rule != "gated_deltanet" or fields["allow_neg_eigval"]:
            remedy = "the PyTorch library only has mixtures of plain gated_deltanet memories"
            raise InputError("memory_rule", rule, remedy)
        if attn is not None and (attn["qkv_bias"] or attn["rope_theta"] != _ROPE_THETA):
            remedy = f"the PyTorch library's MoM has attention without biases and with a base of {_ROPE_THETA:g} only"
            raise InputError("attn", {name: attn[name] for name in ("qkv_bias", "rope_theta")}, remedy)
        constant = {"attn_mode": "chunk", "mom_backend": "gated_deltanet", "capacity": 1.0}
        sizes = HEAD_SIZES.write(fields) | {"use_layer_wise_balance": True}
        return "mom", "MomForCausalLM", without(fields, *_OURS, *_RULES_OWN) | constant | sizes
    published = find_rule(rule).published
    if not isinstance(published, Published):
        names = (name for name, form in published_rules().items() if isinstance(form, Published))
        raise InputError("memory_rule", rule, f"published single memories are {', '.join(names)}")
    published.check_writable(fields)
    sizes = published.sizes.write(fields)
    unknown = [name for name in _MEMORY if name not in published.options]
    fields = renamed(without(fields, *_MIXTURE, *_OURS, *unknown), published.names)
    return published.model_type, published.architecture, fields | sizes
