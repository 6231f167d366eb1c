"""Decides and never acts: no clock, file, socket, process or torch in here; time is an argument."""
