"""What a machine is made of: cpus, cores, nodes, limits."""
