"""Prints ``launcher/api/keywords.py``: the options of an engine as a TypedDict, for type checkers and editors.

Made from the declarations in ``launcher.options``, so that no option, type or default is written twice. Run by
``scripts/docs``; a test compares the file with what this prints.
"""

from __future__ import annotations

from pathlib import Path

from launcher.api.options import EngineOptions
from launcher.options.option import Option, options_of

HEAD = '''"""The keyword arguments of engines, for type checkers and editors. Made by ``scripts/docs``; do not edit."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict


class EngineKeywords(TypedDict, total=False):
    """The options of ``launch serve`` that the Python API supports, under the same names."""
'''


def type_of(option: Option) -> str:
    """The type that a keyword argument may have."""
    if option.takes_class:
        name = "str"
    elif option.choices:
        name = f"Literal[{', '.join(repr(choice) for choice in option.choices)}]".replace("'", '"')
    elif option.kind is Path:
        name = "str | Path"
    else:
        name = option.kind.__name__
    if option.declared.none:
        name += f' | Literal["{option.declared.none}"]'
    return f"{name} | None" if option.optional else name


def entry(option: Option) -> str:
    """The lines of one option."""
    default = option.declared.none if option.default is None and option.declared.none else option.default
    text = f"{option.declared.help} Default: {default}."
    return f'\n    {option.name}: {type_of(option)}\n    """{text}"""\n'


print(HEAD + "".join(map(entry, options_of(EngineOptions))), end="")
