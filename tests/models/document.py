"""Generates ``docs/models.md`` from the table of models; ``./scripts/docs`` runs it.

The differences in it are the bounds of the table, which the tests check, so that the document does not change from
machine to machine. Nothing is built or measured here.
"""

from __future__ import annotations

from launcher.host.model.encoders import REFUSED as REFUSED_FAMILIES
from tests.models.cases import CASES, REFUSED, ModelCase, RefusedCase

HEAD = """\
# Which models give exactly the results of their library?

Tests build a small model of each kind below with random weights, save it with transformers or sentence-transformers,
and compare the results of `launch serve` with those that the library computes from the same folder: each text alone, in
batches of mixed lengths, packed and padded, and truncated. `./scripts/docs` generates this page from the table in
`tests/models/cases.py`; the tests check every row.

**Family**: the `model_type` of `config.json`, or the first module of sentence-transformers. **Layout**: how items are
computed by default; a packed model gives the same results padded (`--layout sorted`), and *equal lengths* means that
only items of equal length are computed together, because the model mixes padding into its results. **Difference**: the
bound that the tests check on the relative difference in fp32. In bf16 and int8, `/info` reports the cosine with fp32
that was measured when the model was loaded.

## Supported
"""
MIDDLE = """
## Refused

`launch serve` exits with status 2 and gives the reason.
"""
FAMILIES = """
These families of encoders are refused altogether, as are all types that no table names.
"""


def supported_row(case: ModelCase) -> str:
    """The row of a model that is supported."""
    return f"| {_family(case)} | {case.task} | {case.layout} | {_power(case.bound)} |"


def refused_row(case: RefusedCase) -> str:
    """The row of a model that is refused."""
    return f"| {_family(case)} | {case.task} | {case.reason} |"


def _power(bound: float) -> str:
    return f"{bound:.0e}".replace("e-0", "e-")


def _family(case: ModelCase | RefusedCase) -> str:
    return f"`{case.family}`" + (f", {case.variant}" if case.variant else "")


def document() -> str:
    """The whole page."""
    combinations = len({(case.family, case.task) for case in CASES})
    families = len({case.family for case in CASES})
    of_single_models = [case for case in REFUSED if case.family not in REFUSED_FAMILIES]
    return "\n".join(
        [
            HEAD,
            f"{combinations} combinations of {families} families and their tasks.\n",
            "| family | task | layout | difference |\n|---|---|---|---|",
            *map(supported_row, sorted(CASES, key=lambda case: case.name)),
            MIDDLE,
            "| family | task | reason |\n|---|---|---|",
            *map(refused_row, sorted(of_single_models, key=lambda case: case.name)),
            FAMILIES,
            "| family | reason |\n|---|---|",
            *(f"| `{family}` | {reason} |" for family, reason in sorted(REFUSED_FAMILIES.items())),
            "",
        ]
    )


if __name__ == "__main__":
    print(document(), end="")
