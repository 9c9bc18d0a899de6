"""One module per table or figure, floor 7 of the house. None is written yet."""
