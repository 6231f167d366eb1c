"""The protocol between front and workers: frames, messages, model facts, batch shapes."""
