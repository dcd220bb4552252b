"""The code scan: Bandit and rules of our own over the syntax tree of one program. Nothing is ever run."""
