"""HTTP: connections, request bodies, routes, responses and errors. Scheduling is up to the dispatcher."""
