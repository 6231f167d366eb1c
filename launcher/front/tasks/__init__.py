"""The results of each task, from the rows that workers compute, for HTTP and the Python API. One module per task."""
