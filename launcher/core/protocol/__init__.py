"""What front and workers exchange: frames, messages, model facts, batch shapes."""
