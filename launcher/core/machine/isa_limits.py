"""Which instruction sets the libraries of a worker leave unused because an environment variable says so.

Separate from the checks of ``core.diagnosis``, which report such limits, because the choice of the dtype and the keys
of cost tables depend on them too. Reading the environment must not enter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# What each value of ONEDNN_MAX_CPU_ISA adds to the previous ones; AVX2_VNNI and AVX2_VNNI_2 are without AVX-512.
ONEDNN_STEPS = (
    ("AVX512_CORE", {"avx512f"}),
    ("AVX512_CORE_VNNI", {"avx512_vnni"}),
    ("AVX512_CORE_BF16", {"avx512_bf16"}),
    ("AVX512_CORE_FP16", {"avx512_fp16"}),
    ("AVX512_CORE_AMX", {"amx_tile", "amx_bf16", "amx_int8"}),
    ("AVX512_CORE_AMX_FP16", {"amx_fp16"}),
)
ONEDNN_SAME = {
    "AVX10_1_512": "AVX512_CORE_FP16",
    "AVX10_1_512_AMX": "AVX512_CORE_AMX",
    "AVX10_1_512_AMX_FP16": "AVX512_CORE_AMX_FP16",
}
ONEDNN_BELOW = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2")

# oneDNN's variable under its present and its former name, and the one of torch's own kernels.
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def disabled_by(name: str, value: str, isa: Iterable[str]) -> set[str]:
    """The instruction sets of ``isa`` that libraries do not use when the variable has this value."""
    have = set(isa)
    if name == "ATEN_CPU_CAPABILITY":
        # It limits only torch's own kernels. Matrix products, with the instructions for bf16 and int8, are oneDNN's,
        # which does not read it: with default and with avx2, bf16 was as much faster than fp32 as without it.
        return have & {"default": {"avx2", "avx512f"}, "avx2": {"avx512f"}}.get(value.lower(), set())
    level = ONEDNN_SAME.get(value.upper(), value.upper())
    if level in ONEDNN_BELOW:
        lost = {flag for _, flags in ONEDNN_STEPS for flag in flags}
        return have & (lost | ({"avx2"} if level in ("SSE41", "AVX") else set()))
    names = [step for step, _ in ONEDNN_STEPS]
    if level not in names:
        return set()  # ALL, DEFAULT, and values that oneDNN ignores
    return have & {flag for _, flags in ONEDNN_STEPS[names.index(level) + 1 :] for flag in flags}


def limits_in(environment: Mapping[str, str], isa: Iterable[str]) -> dict[str, set[str]]:
    """What each variable of ``environment`` disables of ``isa``, as ``NAME=value``: instruction sets."""
    have = set(isa)
    limits = {
        f"{name}={environment[name]}": disabled_by(name, environment[name], have)
        for name in ISA_LIMITS
        if environment.get(name)
    }
    return {setting: lost for setting, lost in limits.items() if lost}


def usable_isa(isa: Iterable[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """The instruction sets of ``isa`` that no variable of ``environment`` disables, in their order."""
    have = tuple(isa)
    lost = {flag for disabled in limits_in(environment, have).values() for flag in disabled}
    return tuple(flag for flag in have if flag not in lost)
