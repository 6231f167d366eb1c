"""Determines everything that can be known before a process starts: machine, model, plan, bindings, commands.

Every command that plans uses it, and so does the Python API. It is separate from the engine because reports need the
same facts and start nothing; only the binding probes run. Signals, event loops and workers do not belong here.
"""
