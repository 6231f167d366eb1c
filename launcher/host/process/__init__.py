"""Starts, binds, watches and verifies processes."""
