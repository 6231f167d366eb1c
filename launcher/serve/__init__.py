"""``launch serve``: HTTP, signals and the log on an engine, and everything that a process can have only one of."""
