"""A worker that gets the proof of another one computes the same, without checks, measurements or a full warm-up."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from launcher.core.protocol.messages import Setup
from launcher.host.model.resolve import resolve
from launcher.options import ModelOptions

pytestmark = pytest.mark.slow

ITEMS = [[101, *range(2000, 2000 + length), 102] for length in (90, 40, 7, 1)]
SHAPES = ((1, 16), (1, 64), (4, 64), (8, 16))


@pytest.mark.parametrize(("dtype", "pack"), [("bf16", True), ("int8", True), ("fp32", False)])
def test_a_proven_worker_computes_the_same_with_fewer_batches(start, dtype: str, pack: bool) -> None:
    setup = Setup(resolve(ModelOptions(model="random:tiny")), dtype, "eager", SHAPES, pack=pack)
    first = start()
    first.send(setup)
    ready = first.ready()
    first.run(1, ITEMS)
    _, expected = first.results()
    assert ready.proof is not None
    assert (ready.proof.packed_variant is not None) == ready.packed == pack

    twin = start()
    twin.send(msgspec.structs.replace(setup, proof=ready.proof, known=ready.measured, known_packed=ready.packed))
    again = twin.ready()
    assert (again.accuracy, again.notes, again.packed, again.proof) == (
        ready.accuracy,
        ready.notes,
        ready.packed,
        ready.proof,
    )
    assert again.cached
    twin.run(1, ITEMS)
    _, values = twin.results()
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=1e-7)

    def batches(worker) -> int:
        return sum(message.stage == "warmup" and message.done < 1 for message in worker.loading)

    assert (batches(first), batches(twin)) == (4, 2)
    details = [message.detail for message in twin.loading if message.stage == "check"]
    assert set(details) == {"as in an earlier worker"}
