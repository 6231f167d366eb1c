"""Layouts: how the items of a batch are arranged for a PyTorch model, padded or packed. They implement
``interfaces.Layout``."""
