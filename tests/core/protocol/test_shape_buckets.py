from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.core.planning.worker_env import ONEDNN_CACHED_KERNELS
from launcher.core.protocol.shape_buckets import BUCKETS_PER_DOUBLING, UNPADDED_TOKENS, bucket_size


@given(st.integers(1, 100_000))
def test_a_batch_is_padded_a_little_and_never_truncated(tokens: int) -> None:
    padded = bucket_size(tokens)
    assert tokens <= padded <= tokens * (1 + 1 / BUCKETS_PER_DOUBLING) + 1
    assert bucket_size(padded) == padded
    assert padded == tokens or tokens > UNPADDED_TOKENS or tokens == 1


def test_batches_of_up_to_two_thousand_tokens_fall_into_few_buckets() -> None:
    assert len({bucket_size(tokens) for tokens in range(1, 2049)}) <= 128


def test_the_kernel_cache_holds_all_single_texts_of_up_to_256_tokens() -> None:
    matrix_products = 4  # fused query, key and value; the output of attention; the two of the feed-forward layer
    sizes = {bucket_size(tokens) for tokens in range(1, 257)}
    assert len(sizes) * matrix_products <= int(ONEDNN_CACHED_KERNELS)
