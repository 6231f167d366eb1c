"""The composition root: from options to machine, plan and processes, and the only place that joins front and host."""
