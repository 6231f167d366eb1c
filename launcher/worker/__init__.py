"""The worker process: one model replica on its cores. The only place where torch is imported."""
