"""Decides and never acts: no clock, file, socket, process or torch; time is an argument."""
