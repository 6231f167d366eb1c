"""Finds a model and reads its files, without torch."""
