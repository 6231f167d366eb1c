"""``launch serve``: HTTP, signals and the log on an engine, and all that a process has only one of."""
