"""Simulates plans under load, and chooses length classes from the results."""
