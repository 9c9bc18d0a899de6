"""The fastest that devices multiply, by the names that JAX gives them. Importing this module imports no JAX."""

# FLOPs a second of bfloat16 products without sparsity. TPUs: Google Cloud's pages of each version; GPUs: NVIDIA's data
# sheets, of the SXM cards.
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
_SLOWER = ("PCIE", "PCIe", "NVL")  # cards of the same name with other clocks


def peak_flops(kind: str) -> float | None:
    """The most FLOPs a second of a kind of device; None where that is not known."""
    if any(word in kind for word in _SLOWER):
        return None
    if kind in _PEAKS:
        return _PEAKS[kind]
    card = " ".join(kind.replace("-", " ").split()[:2])  # NVIDIA H100 80GB HBM3, NVIDIA A100-SXM4-80GB
    return _PEAKS.get(card) if card.startswith("NVIDIA") else None
