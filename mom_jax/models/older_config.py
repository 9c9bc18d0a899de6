"""The older published configuration, model type ``mom_gated_deltanet``, in the words of the newer one."""

from typing import Any

# Its fields that were renamed since; memories were called experts at first.
_RENAMED = {"num_experts": "num_memories", "single_expert": "single_kv_proj", "use_gate": "use_output_gate"}
# What it means by leaving a field out, where that differs from the newer configuration.
_DEFAULTS = {"expand_v": 2, "num_heads": 6, "num_hidden_layers": 21, "num_memories": 8, "shared_mem": False}


def in_new_words(fields: dict[str, Any]) -> dict[str, Any]:
    """The same configuration with the names of the newer one; its defaults are written out."""
    return _DEFAULTS | {_RENAMED.get(name, name): value for name, value in fields.items()}
