"""Admission, batching and dispatch: which items run on which instance, in which batch, and when."""
