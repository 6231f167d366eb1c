"""``launch serve``: HTTP, signals and the log on an engine, and everything that exists once per process."""
