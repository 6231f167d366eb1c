"""The worker process: one instance of a model on its cores. The only package that imports torch."""
