"""Backends: ways to compute a model, one module per backend. They implement ``interfaces.Backend``; ``create`` has the
table."""
