"""The structure of a machine: cpus, cores, nodes, limits."""
