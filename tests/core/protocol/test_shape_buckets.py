from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.core.planning.binding import ONEDNN_CACHED_KERNELS
from launcher.core.protocol.shape_buckets import EXACT, FILLING, line_tokens


@given(st.integers(1, 100_000))
def test_a_line_is_padded_slightly_and_never_shortened(tokens: int) -> None:
    filled = line_tokens(tokens)
    assert tokens <= filled <= tokens * (1 + 1 / FILLING) + 1
    assert line_tokens(filled) == filled
    assert filled == tokens or tokens > EXACT or tokens == 1


def test_lines_up_to_two_thousand_tokens_have_few_lengths() -> None:
    assert len({line_tokens(tokens) for tokens in range(1, 2049)}) <= 128


def test_the_kernel_cache_holds_all_single_texts_up_to_256_tokens() -> None:
    kinds_of_products = 4  # joined query, key and value; attention output; the two of the feed-forward part
    lengths = {line_tokens(tokens) for tokens in range(1, 257)}
    assert len(lengths) * kinds_of_products <= int(ONEDNN_CACHED_KERNELS)
