import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.machine.isa_limits import usable_isa
from launcher.core.planning.footprint import choose_dtype, dtype_notes, mixed_batches, warmup_shapes


@given(st.integers(1, 8192), st.integers(1, 1 << 15))
def test_a_worker_accepts_every_batch_of_the_warmup(max_length: int, batch_tokens: int) -> None:
    for rows, width in warmup_shapes(max_length, batch_tokens):
        assert rows >= 1
        assert 1 <= width <= max_length
        assert rows == 1 or rows * width <= batch_tokens
    for lengths in mixed_batches(max_length, batch_tokens):
        assert list(lengths) == sorted(lengths, reverse=True)
        assert lengths[-1] >= 1
        assert lengths[0] <= max_length
        assert len(lengths) == 1 or sum(lengths) <= batch_tokens


def test_mixed_batches_have_several_sizes_and_many_lengths() -> None:
    batches = mixed_batches(512, 2048)
    sizes = [sum(lengths) for lengths in batches]
    assert max(sizes) > 0.9 * 2048
    assert min(sizes) < 2048 / 8
    assert all(len(set(lengths)) > len(lengths) / 2 for lengths in batches)


AVX512 = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")
AMX = (*AVX512, "amx_tile", "amx_bf16", "amx_int8")


@pytest.mark.parametrize(
    ("isa", "environment", "dtype"),
    [
        (AVX512, {}, "bf16"),
        (AVX512, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "fp32"),
        (AVX512, {"DNNL_MAX_CPU_ISA": "avx2"}, "fp32"),
        (AVX512, {"ATEN_CPU_CAPABILITY": "avx2"}, "bf16"),
        (AVX512, {"ATEN_CPU_CAPABILITY": "default"}, "bf16"),
        (AVX512, {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"}, "fp32"),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "bf16"),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, "fp32"),
        (AMX, {"ONEDNN_MAX_CPU_ISA": "ALL"}, "bf16"),
        (("avx2",), {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "fp32"),
    ],
)
def test_the_automatic_dtype_needs_instructions_that_libraries_may_use(
    isa: tuple[str, ...], environment: dict[str, str], dtype: str
) -> None:
    assert choose_dtype("auto", usable_isa(isa, environment)) == dtype
    notes = dtype_notes("auto", isa, environment)
    lost = dtype == "fp32" and "avx512_bf16" in isa
    assert len(notes) == lost
    for name, value in environment.items() if lost else ():
        if name == "ATEN_CPU_CAPABILITY":
            assert name not in notes[0]
            continue
        assert f"{name}={value}" in notes[0]
        assert "--dtype auto is fp32" in notes[0]


def test_an_explicit_bf16_without_its_instructions_is_reported_with_its_cost() -> None:
    (note,) = dtype_notes("bf16", AVX512, {"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert "ONEDNN_MAX_CPU_ISA=AVX2" in note
    assert "slower than fp32" in note
    assert dtype_notes("fp32", AVX512, {"ONEDNN_MAX_CPU_ISA": "AVX2"}) == ()
