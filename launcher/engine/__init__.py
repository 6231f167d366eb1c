"""The engine: machine, plan, supervisor, dispatcher, tokenizer and costs, joined once.

``serve`` puts HTTP, signals and the log on it, ``bench throughput`` measures it, the Python API calls it. No HTTP, no
signal handler, no argument, no event loop policy, no affinity of this process and no limit of descriptors: a process
has one of each, and they belong to whoever owns the process.
"""
