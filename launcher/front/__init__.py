"""The front process: HTTP, tokenizing, the dispatcher and its channels to the workers. Never imports torch."""
