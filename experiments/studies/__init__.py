"""One module for each table or figure of the paper, and for each study of our own."""
