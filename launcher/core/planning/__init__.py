"""Plans the cores, memory, commands and libraries of each instance."""
