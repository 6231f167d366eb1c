"""Names and prefixes of environment variables. Separate and without imports, so that ``core`` can use them."""

# Options: LAUNCH_PORT.
OPTION_PREFIX = "LAUNCH_"
# Variables that ``launch run`` sets for its programs: LAUNCH_RUN_INSTANCE. They are never options, because one of the
# programs may be ``launch``.
RUN_PREFIX = "LAUNCH_RUN_"

# Not options, because they must not be flags or keys: a flag is visible in the list of processes, and the output of
# ``launch config`` would contain the key.
ADMIN_KEY_VARIABLE = OPTION_PREFIX + "ADMIN_KEY"
API_KEY_VARIABLE = OPTION_PREFIX + "API_KEY"
# Where launchers on this machine register their cores. Not an option, because all commands and the Python API must
# agree about it.
REGISTRY_VARIABLE = OPTION_PREFIX + "REGISTRY"
