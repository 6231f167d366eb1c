"""Tasks: how the outputs of a PyTorch model become results, one module per task. ``create`` has the table."""
