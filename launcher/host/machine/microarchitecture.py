"""Names the microarchitecture of a processor from facts of `/proc/cpuinfo`: ``zen4``, ``neoverse_v2``.

Separate because the names and their features are archspec's data. archspec's own detection reads this machine; the
matching here follows the same rules for any machine, recorded ones included. No file is read here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from archspec.cpu import Microarchitecture

FAMILIES = ("x86_64", "aarch64")
# Hypervisors often hide these. They select no numeric kernel, and a guest that lacks them is not an older processor.
OFTEN_HIDDEN = frozenset({"pku", "flush_l1d", "waitpkg", "cldemote", "movdiri", "movdir64b", "serialize"})


@dataclass(frozen=True, slots=True)
class Identity:
    """The facts that identify a microarchitecture: ``flags`` in lower case, ``part`` as Arm's `CPU part` (``0xd4f``) or
    empty.
    """

    arch: str
    vendor: str | None
    flags: frozenset[str]
    part: str = ""


def microarchitecture(identity: Identity) -> str | None:
    """archspec's name of the newest microarchitecture whose features the processor has; None for other families.

    A processor that archspec does not know, or whose features a hypervisor hides, gets a generic name: ``x86_64_v4``.
    """
    if identity.arch not in FAMILIES or not identity.flags:
        return None
    from archspec.cpu import TARGETS  # only here: importing it takes longer than the rest of this module

    root = TARGETS[identity.arch]
    compatible = [one for one in TARGETS.values() if root in (one, *one.ancestors) and _compatible(identity, one)]
    if not compatible:
        return None
    generic = _newest(one for one in compatible if one.vendor == "generic")
    same_part = [one for one in compatible if identity.part and one.cpu_part == identity.part]
    # As in archspec: a processor that lacks some feature does not count as one of a lower level.
    named = [one for one in same_part or compatible if generic in one.ancestors]
    return str((_newest(named) if named else generic).name)


def _compatible(identity: Identity, target: Microarchitecture) -> bool:
    """Whether the processor is of the target's vendor and has its features.

    Arm's generic levels have no features, so only the root of that family can be identified.
    """
    if target.vendor == "generic":
        return (not target.ancestors if identity.arch == "aarch64" else True) and _has(identity, target.features)
    return target.vendor.lower() == (identity.vendor or "").lower() and _has(identity, target.features)


def _has(identity: Identity, features: Iterable[str]) -> bool:
    # /proc/cpuinfo calls sse3 pni; archspec adds sse3 wherever there is ssse3.
    return set(features) - OFTEN_HIDDEN - {"sse3"} <= identity.flags


def _newest(targets: Iterable[Microarchitecture]) -> Microarchitecture:
    return max(targets, key=lambda one: (len(one.ancestors), len(one.features)))
