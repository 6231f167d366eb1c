"""Choosing a plan by simulating it with the scheduler that serves."""
