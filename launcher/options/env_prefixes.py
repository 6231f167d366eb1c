"""Prefixes of environment variables. Separate and without imports, so that ``core`` may use them too."""

# Options: LAUNCH_PORT.
OPTION_PREFIX = "LAUNCH_"
# What ``launch run`` tells its programs: LAUNCH_RUN_INSTANCE. Never an option, so that a ``launch`` among the programs
# does not take the place of its program for a wish.
RUN_PREFIX = "LAUNCH_RUN_"
