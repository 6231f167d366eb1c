"""NumPy is imported here, before hypothesis measures how long examples take: ``fit`` imports it at its first call."""

import numpy  # noqa: F401
