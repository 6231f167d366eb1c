"""``launch run``: N copies of any program, each on its cores."""
