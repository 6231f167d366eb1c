"""Benchmarks: load over HTTP, the throughput of workers, and a plain script on the same texts."""
