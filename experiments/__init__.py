"""`studies`, one module for each table or figure; `common`, what they are made of; sweeps; the HTML page."""
