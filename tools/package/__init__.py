"""The wheel and the source archive as a stranger gets them: ``python -m tools.package``."""
