"""The protocol between front and workers: frames, messages, model info, batch shapes."""
