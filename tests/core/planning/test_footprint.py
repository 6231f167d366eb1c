from hypothesis import given
from hypothesis import strategies as st

from launcher.core.planning.footprint import mixed_batches, warmup_shapes


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
