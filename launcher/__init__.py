"""One command turns a CPU server into an inference server for transformer models."""
