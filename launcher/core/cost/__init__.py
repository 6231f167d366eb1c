"""What a batch costs: the law, its tables, and the lengths that arrive."""
