"""From options to all that is known before a process starts: machine, model, plan, bindings, preload, commands.

Every command that plans uses it: ``serve``, ``topology``, ``run``, ``bench throughput``, and the Python API. It is
separate from the engine because a report needs the same facts and starts nothing; only the probes of the bindings
run here. Signals, event loops and workers must not enter.
"""
