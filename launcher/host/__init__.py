"""Everything that reads or acts on the machine: sysfs, cgroups, processes and their verification."""
