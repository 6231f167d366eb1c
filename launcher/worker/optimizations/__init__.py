"""Faster ways to compute what a PyTorch model computes: prepacked and int8 weights, fused layers, TorchScript.

Separate from the backends, which decide what to apply and check the results.
"""
