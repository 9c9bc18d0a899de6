"""One module per table or figure, floor 7 of the house; `experiments.registry` lists them."""
