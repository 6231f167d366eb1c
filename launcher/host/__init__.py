"""What the launcher does to and reads from the machine: sysfs, cgroups, processes, their verification."""
