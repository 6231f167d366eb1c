"""Kernel lists and masks: parsing and formatting, every form that the kernel writes, and errors for anything else."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launcher.core.machine.cpuset import MAX_ID, format_cpu_list, parse_cpu_list, parse_cpu_mask
from tests.machines import mask

cpu_sets = st.sets(st.integers(0, 5000), max_size=200)


@given(cpu_sets)
@example(set())
@example({0})
def test_a_formatted_list_parses_to_the_same_set(cpus: set[int]) -> None:
    assert parse_cpu_list(format_cpu_list(cpus)) == tuple(sorted(cpus))


@given(cpu_sets, st.integers(1, 6000))
def test_a_mask_of_any_width_parses_to_the_same_set(cpus: set[int], width: int) -> None:
    assert parse_cpu_mask(mask(cpus, width)) == tuple(sorted(cpus))


@given(cpu_sets)
def test_a_formatted_list_is_the_shortest(cpus: set[int]) -> None:
    spans = [part for part in format_cpu_list(cpus).split(",") if part]
    starts = [cpu for cpu in cpus if cpu - 1 not in cpus]
    assert len(spans) == len(starts)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", ()),
        ("\n", ()),
        ("0", (0,)),
        ("0-3,8", (0, 1, 2, 3, 8)),
        (" 0 , 2-3 \n", (0, 2, 3)),
        ("3,1,2,1", (1, 2, 3)),
        ("0-12:2/4", (0, 1, 4, 5, 8, 9, 12)),
        ("0-31:1/8", (0, 8, 16, 24)),
        ("0-1\0", (0, 1)),
        ("\0\0\0", ()),
        ("(null)", ()),
        ("          (null)\n", ()),
    ],
)
def test_lists_in_every_form_of_the_kernel_are_parsed(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_list(text) == cpus


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "1-",
        "-1",
        "3-1",
        "1--3",
        "0x3",
        "1.5",
        "1;2",
        "0-3:0/2",
        "0-3:3/2",
        "0-3:1",
        "0-3:/2",
        "٣",
        f"{MAX_ID + 1}",
    ],
)
def test_an_invalid_list_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a cpu|largest supported"):
        parse_cpu_list(text)


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", ()),
        ("3", (0, 1)),
        ("f,ffffffff", tuple(range(36))),
        ("00000001,00000000\n", (32,)),
        ("00000003\0", (0, 1)),
        ("", ()),
    ],
)
def test_masks_in_every_form_of_the_kernel_are_parsed(text: str, cpus: tuple[int, ...]) -> None:
    assert parse_cpu_mask(text) == cpus


@pytest.mark.parametrize("text", ["g", "1,,2", "(null)", "0x1", "-1", "1_0", "ff,123456789", " 1 2"])
def test_an_invalid_mask_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a hex mask"):
        parse_cpu_mask(text)


def test_an_oversized_mask_is_refused_before_it_is_expanded() -> None:
    with pytest.raises(ValueError, match="largest supported"):
        parse_cpu_mask(",".join(["ffffffff"] * (MAX_ID // 32 + 1)))
