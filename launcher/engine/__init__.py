"""The engine: machine, plan, supervisor, dispatcher, tokenizer and costs, joined once.

``serve`` adds HTTP, signals and the log; ``bench throughput`` measures it; the Python API calls it. HTTP, signal
handlers, argument parsing, event loop policies, and the affinity and descriptor limit of this process do not belong
here: a process has one of each, and they belong to the program that owns the process.
"""
