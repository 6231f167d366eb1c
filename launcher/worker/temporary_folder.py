"""Lets libraries be imported where no temporary folder can be written and where the user has no name.

Separate because it must run before torch and transformers are imported: some of their modules ask for the temporary
folder, or for the name of the user, when they are imported, though nothing is stored there.
"""

from __future__ import annotations

import getpass
import os
import tempfile


def tolerate_absence() -> None:
    """If there is no temporary folder, name one that exists but cannot be written: only what needs a file fails then.

    If the user has no entry in the password database, as with an arbitrary uid in a container, set LOGNAME.
    """
    try:
        tempfile.gettempdir()
    except OSError:
        tempfile.tempdir = os.sep
        # torch makes this folder when it is imported, even if nothing is compiled.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.sep)
    try:
        getpass.getuser()
    except (OSError, KeyError):  # KeyError before Python 3.13
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"
