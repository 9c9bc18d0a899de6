"""Run by itself on eight fake devices: a model of one rule on every mesh of eight devices, beside one device.

    all_meshes.py RULE

Prints ``agree: MESH`` for each mesh on which loss, router logits and every gradient are those of one device.
"""

import dataclasses
import sys

from support.meshes import EIGHT, SMALL, agreeing


def main(rule: str) -> None:
    """Compares them, one after the other."""
    config = dataclasses.replace(SMALL, memory_rule=rule, num_heads=8, head_dim=4, num_hidden_layers=1)
    for mesh in agreeing(config, EIGHT):
        print("agree:", mesh, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
