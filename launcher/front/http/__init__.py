"""HTTP: routes, bodies, replies and errors. What is computed, when and where, is decided behind the dispatcher."""
