"""Names of microarchitectures: of archspec's own recorded processors, of guests, and of unknown processors."""

from __future__ import annotations

from pathlib import Path

import archspec
import pytest

from launcher.core.machine.catalogue import CATALOGUE, KnownMachine
from launcher.host.machine.file_tree import Tree
from launcher.host.machine.microarchitecture import Identity, microarchitecture
from launcher.host.machine.processor import ARM_ISA, X86_ISA, read_processor

RECORDED = Path(archspec.__file__).parent / "json" / "tests" / "targets"
ZEN4 = RECORDED / "linux-rocky8.5-zen4"


def recorded_processors() -> list[Path]:
    """archspec's copies of `/proc/cpuinfo`, of families that get names, by expected name."""
    return sorted(path for path in RECORDED.glob("linux-*") if "flags" in _first_keys(path) or _is_arm(path))


def flags_of(path: Path) -> frozenset[str]:
    line = next(line for line in path.read_text().splitlines() if line.startswith("flags"))
    return frozenset(line.partition(":")[2].split())


def _first_keys(path: Path) -> set[str]:
    return {line.partition(":")[0].strip() for line in path.read_text().splitlines()[:60]}


def _is_arm(path: Path) -> bool:
    return "CPU implementer" in _first_keys(path)


@pytest.mark.parametrize("path", recorded_processors(), ids=lambda path: path.name)
def test_processors_recorded_by_archspec_get_its_name_for_them(path: Path, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(path.read_text())
    assert read_processor(Tree(tmp_path)).microarchitecture == path.name.split("-", 2)[2]


def test_there_are_recorded_processors() -> None:
    assert len(recorded_processors()) > 25


def test_a_guest_lacking_the_flags_that_hypervisors_hide_keeps_its_name() -> None:
    guest = flags_of(ZEN4) - {"pku", "ospke", "flush_l1d"}
    assert microarchitecture(Identity("x86_64", "AuthenticAMD", guest)) == "zen4"
    assert microarchitecture(Identity("x86_64", "AuthenticAMD", guest - {"avx512_bf16"})) == "x86_64_v4"


def test_a_processor_of_an_unknown_vendor_gets_the_level_of_its_features() -> None:
    assert microarchitecture(Identity("x86_64", "Somebody", flags_of(ZEN4))) == "x86_64_v4"
    assert microarchitecture(Identity("x86_64", None, frozenset({"lm"}))) == "x86_64"


@pytest.mark.parametrize(
    "identity", [Identity("s390x", "IBM/S390", frozenset({"vx"})), Identity("x86_64", None, frozenset())]
)
def test_a_processor_that_archspec_cannot_identify_has_no_name(identity: Identity) -> None:
    assert microarchitecture(identity) is None


@pytest.mark.parametrize("known", CATALOGUE, ids=lambda known: known.name)
def test_known_machines_have_the_names_and_instruction_sets_that_would_be_read(known: KnownMachine) -> None:
    from archspec.cpu import TARGETS

    processor = known.processor
    target = TARGETS[processor.microarchitecture]
    assert target.family.name == processor.arch
    assert target.vendor == processor.vendor
    order = X86_ISA if processor.arch == "x86_64" else ARM_ISA
    assert processor.isa == tuple(flag for flag in order if flag in processor.isa)
    assert set(processor.isa) >= set(target.features) & set(order) - {"sme"}
