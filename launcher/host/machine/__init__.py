"""Reads the machine: sysfs, cgroups, lscpu, the processor, and recorded machines."""
