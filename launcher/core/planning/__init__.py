"""Which cores, memory and libraries each instance gets."""
