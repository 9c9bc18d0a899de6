"""The label of tokens that are not to be predicted."""

IGNORE = -100  # as in PyTorch; no loss and no score counts it
