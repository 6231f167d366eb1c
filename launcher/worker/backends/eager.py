"""The eager backend: plain transformers and torch, in fp32 or bf16, padded batches sorted by length.

Weights are read in fp32 and converted tensor by tensor, so that the check against fp32 needs no second model in
memory. Pooling and scores are in ``tasks``; the channel must not enter here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig

from launcher.core.messages import Setup
from launcher.core.models import SHAPES, ModelCard
from launcher.worker.backends import Ids, Loaded, ModelRefused, Output, Report, Values
from launcher.worker.check import check_items, largest_difference, lowest_cosine
from launcher.worker.tasks.classify import score
from launcher.worker.tasks.embed import pool

SAME = 0.01  # relative; fp32 rounding gives about 1e-5, padding that leaks in 0.1 and more
ACCURATE = 0.999  # lowest cosine between bf16 and fp32 that needs no words
SEED = 0  # random weights: every instance must have the same ones


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """Items padded on the right to the longest: ``ids`` int64, ``mask`` True for real tokens, or None."""

    ids: Tensor
    mask: Tensor | None
    lengths: Tensor


def pad(ids: Ids, lengths: Sequence[int], pad_id: int) -> PaddedBatch:
    """The items whose ``ids`` follow each other, longest first, as rows of one width."""
    rows, width = len(lengths), lengths[0]
    counts = np.asarray(lengths, dtype=np.int64)
    if lengths[-1] == width:
        padded = ids.reshape(rows, width).astype(np.int64)
        return PaddedBatch(torch.from_numpy(padded), None, torch.from_numpy(counts))
    mask = np.arange(width) < counts[:, None]
    padded = np.full((rows, width), pad_id, dtype=np.int64)
    padded[mask] = ids
    return PaddedBatch(torch.from_numpy(padded), torch.from_numpy(mask), torch.from_numpy(counts))


def configure_process(threads: int) -> None:
    """Settings that hold for the whole process: threads, no gradients, quiet libraries. Can be called once."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


class EagerBackend:
    """See the head of this module."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._card = setup.card
        self._model: torch.nn.Module

    def load(self, report: Report) -> Loaded:
        """Weights in memory in the dtype asked for; in bf16 compared with fp32 over the check texts."""
        report("load", 0.0, self._card.asked)
        self._model = _load_model(self._setup).eval()
        if self._setup.dtype == "fp32":
            _leave_the_file(self._model)
        report("load", 1.0, self._card.asked)
        accuracy = self._check(report)
        notes = [f"attention: {getattr(self._model.config, '_attn_implementation', 'its own')}"]
        if accuracy is not None and accuracy < ACCURATE:
            notes.append(f"bf16 is coarse for this model: cosine {accuracy:.5f} with fp32; --dtype fp32 is exact")
        return Loaded(str(torch.__version__), torch.get_num_threads(), accuracy, tuple(notes))

    def _check(self, report: Report) -> float | None:
        """Prove on the check texts what batches rely on, then convert to the dtype asked for.

        Returns the lowest cosine between bf16 and fp32, None for fp32. Raises ``ModelRefused`` when the result of an
        item depends on the padding beside it, or is not a number.
        """
        report("check", 0.0, "alone and in a padded batch")
        items = check_items(self._card)
        alone = np.concatenate([self._run_items([item]) for item in items])
        difference = largest_difference(alone, self._run_items(items))
        if not difference <= SAME:
            raise ModelRefused(
                f"{self._card.asked}: the result of a text depends on the padding beside it (relative difference "
                f"{difference:.2g} over the check texts, {SAME} allowed), so this model cannot be served in batches"
            )
        if self._setup.dtype == "fp32":
            report("check", 1.0, f"relative difference in a padded batch {difference:.1g}")
            return None
        report("check", 0.5, "bf16 against fp32")
        self._model.to(torch.bfloat16)
        accuracy = lowest_cosine(alone, self._run_items(items))
        if not np.isfinite(accuracy):
            raise ModelRefused(f"{self._card.asked}: results in bf16 are not numbers; use --dtype fp32")
        report("check", 1.0, f"lowest cosine between bf16 and fp32 {accuracy:.5f}")
        return accuracy

    def _run_items(self, items: Sequence[Ids]) -> Values:
        """Results of ``items``, longest first, as one batch."""
        return self.run(np.concatenate(items), [len(item) for item in items]).values

    @torch.inference_mode()
    def run(self, ids: Ids, lengths: Sequence[int]) -> Output:
        """Results of one padded batch (see ``Backend.run``)."""
        batch = pad(ids, lengths, self._card.pad_id)
        mask = None if batch.mask is None else batch.mask.to(torch.int64)
        output = self._model(input_ids=batch.ids, attention_mask=mask)
        return Output(self._reduce(output, batch).numpy(), batch.ids.numel())

    def _reduce(self, output: transformers.utils.ModelOutput, batch: PaddedBatch) -> Tensor:
        card = self._card
        if card.task == "classify":
            return score(output.logits, card.scores)
        return pool(output.last_hidden_state, batch.lengths, batch.mask, card.pooling, card.normalize)


def _load_model(setup: Setup) -> torch.nn.Module:
    """The model of a card in fp32, its weights in memory. Raises ``ModelRefused`` when some are missing."""
    card = setup.card
    kind = AutoModelForSequenceClassification if card.task == "classify" else AutoModel
    if card.shape is not None:
        model = _random_model(card, kind)
    else:
        model, info = kind.from_pretrained(
            card.folder,
            local_files_only=True,
            trust_remote_code=setup.trust_remote_code,
            output_loading_info=True,
            **{_dtype_argument(): torch.float32},
        )
        _refuse_missing_weights(card, info["missing_keys"])
    if card.task == "embed" and hasattr(model, "pooler"):
        # Its result is not used, and some models come without its weights. Not None: some models call it unasked.
        model.pooler = torch.nn.Identity()
    return model


def _dtype_argument() -> str:
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    return "dtype" if version >= (4, 56) else "torch_dtype"


def _random_model(card: ModelCard, kind: type) -> torch.nn.Module:
    shape = SHAPES[card.shape or ""]
    config = BertConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.token_types,
        pad_token_id=card.pad_id,
        num_labels=max(1, len(card.labels)),
    )
    torch.manual_seed(SEED)
    model: torch.nn.Module = kind.from_config(config)  # type: ignore[attr-defined]  # transformers' auto classes
    return model


def _refuse_missing_weights(card: ModelCard, missing: Sequence[str]) -> None:
    """transformers fills missing weights with random ones and goes on; such a model answers nonsense."""
    needed = sorted(key for key in missing if not (card.task == "embed" and key.startswith("pooler.")))
    if needed:
        raise ModelRefused(
            f"{card.asked}: the weights lack {len(needed)} of the tensors that {card.architecture} needs "
            f"for the task {card.task}, the first is {needed[0]}"
        )


def _leave_the_file(model: torch.nn.Module) -> None:
    """Copy weights that are still a view of the mapped file: pages of the file cache stay on whatever node first read
    them, whatever this process's memory policy is."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
