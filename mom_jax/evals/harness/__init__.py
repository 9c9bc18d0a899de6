"""Tasks of lm-evaluation-harness on our models; the only package that imports ``lm_eval`` (extra ``eval``)."""
