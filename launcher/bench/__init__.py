"""Measuring: load over HTTP, a worker's own rate, and what a plain script reaches on the same texts."""
