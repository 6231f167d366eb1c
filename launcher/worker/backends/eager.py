"""The eager backend: transformers and torch, in fp32, bf16 or int8.

Every step away from the plain model is checked when the model is loaded (``result_checks``): packing or padding, lower
precision, and each optimization. Weights are loaded in fp32 and converted tensor by tensor, so that the checks need no
second model in memory. The channel does not belong here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice

import torch
import transformers

from launcher.core.planning.footprint import mixed_batches
from launcher.core.protocol.load_proof import LoadProof, Optimization
from launcher.core.protocol.messages import Setup
from launcher.core.protocol.model_info import Batching, ModelInfo
from launcher.worker.compare_tokenizers import check_tokenizer
from launcher.worker.interfaces import (
    BatchOutput,
    Item,
    ItemBatch,
    Layout,
    LoadedModel,
    ModelError,
    PackingUnsupportedError,
    ReportProgress,
)
from launcher.worker.layouts.equal_lengths import EqualLengthLayout
from launcher.worker.layouts.packed import PackedLayout, packed_layouts
from launcher.worker.layouts.padded import PaddedLayout
from launcher.worker.load_model import attention_windows, convert_model, copy_from_file_cache, load_model
from launcher.worker.optimizations.prepack import prepack, prepack_if_faster
from launcher.worker.optimizations.quantize import quantize
from launcher.worker.result_checks import (
    Accuracy,
    Reference,
    Selection,
    check_accuracy,
    results_unchanged,
    run_items,
    select_runner,
)
from launcher.worker.sample_inputs import check_items, synthetic_batch
from launcher.worker.timing import keep_if_not_slower

TRACED_LENGTH = 48  # tokens of the longest item that the model is traced with; other lengths are checked
NOT_PACKED: Mapping[Batching, str] = {
    "padded": "the model's code does not support it",
    "equal": "padding may change results, so only items of equal length are computed together",
}
TIMED_TOKENS = 512  # of the batch that optimizations are timed with, and that weights are prepacked for


def configure_torch(threads: int) -> None:
    """Settings of the whole process: threads, no gradients, no messages of libraries. Can be called only once."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


class EagerBackend:
    """See the head of this module."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._model: torch.nn.Module
        self.kept: list[Optimization] = []
        self.layout: Layout

    def load(self, report: ReportProgress) -> LoadedModel:
        """Load the weights, choose the layout, convert to the dtype, optimize, and check the results of each step.

        Raises ``ModelError``.
        """
        model_info, dtype = self._setup.model_info, self._setup.dtype
        report("load", 0.0, model_info.requested)
        if self._setup.proof is None:
            check_tokenizer(model_info, trust_remote_code=self._setup.trust_remote_code)
        self._model = load_model(self._setup)
        if dtype != "bf16":  # the conversion to bf16 copies them anyway
            copy_from_file_cache(self._model)
        report("load", 1.0, model_info.requested)
        if self._setup.proof is not None:
            return self._load_proven(self._setup.proof, report)
        report("check", 0.0, "computing reference results in fp32")
        padded = PaddedLayout(self._model, model_info)
        padded.check_head()
        items = check_items(model_info, attention_windows(self._model))
        reference = Reference.one_by_one(padded, model_info, items)
        _check_width(reference, model_info)
        notes = [f"attention: {_attention_of(self._model) or 'built into the model'}"]
        report("check", 0.2, "checking packed results")
        selected = self._select_layout(reference, padded)
        self.layout = selected.runner
        if selected.not_packed:
            padded_to = "" if model_info.batching == "equal" else "padded to a common length, "
            notes.append(f"items are {padded_to}not packed: {selected.not_packed}")
        report("check", 0.5, f"converting to {dtype} and optimizing")
        notes += self._convert(reference.items)
        accuracy = None if dtype == "fp32" else check_accuracy(reference, self, dtype)
        notes += accuracy.notes if accuracy else ()
        report("check", 1.0, _summary(selected, dtype, accuracy))
        cosine = accuracy.cosine if accuracy else None
        return _loaded(LoadProof(selected.variant, tuple(self.kept), cosine, tuple(notes)))

    def _load_proven(self, proof: LoadProof, report: ReportProgress) -> LoadedModel:
        """Make the model what it was in the worker that sent the proof, without checks and measurements."""
        model_info = self._setup.model_info
        report("check", 0.0, "as in an earlier worker")
        padded = PaddedLayout(self._model, model_info)
        if proof.packed_variant is None:
            self.layout = EqualLengthLayout(padded) if model_info.batching == "equal" else padded
        else:
            self.layout = next(islice(packed_layouts(self._model, model_info), proof.packed_variant, None))
        if self._setup.dtype == "bf16":
            convert_model(self._model, torch.bfloat16)
        elif self._setup.dtype == "int8":
            self._quantize(check_items(model_info, attention_windows(self._model)))
        batch = self._traced_batch()  # small: nothing is timed
        self.run(batch)  # as before the first optimization of the earlier worker: the layout learns from it
        self.repeat_optimizations(proof.optimizations, lambda: self.run(batch))
        report("check", 1.0, "as in an earlier worker")
        return _loaded(proof)

    def sample_batch(self, lengths: Sequence[int]) -> ItemBatch:
        """See ``Backend.sample_batch``."""
        return synthetic_batch(lengths, self._setup.model_info)

    def run(self, batch: ItemBatch) -> BatchOutput:
        """See ``BatchRunner.run``."""
        return self.layout.run(batch)

    def _select_layout(self, reference: Reference, padded: PaddedLayout) -> Selection[Layout]:
        attention, batching = _attention_of(self._model), self._setup.model_info.batching

        def candidates() -> Iterator[Layout]:
            if batching != "packed":
                raise PackingUnsupportedError(NOT_PACKED[batching])
            if not self._setup.pack:
                raise PackingUnsupportedError("packing is disabled by --layout")
            yield from packed_layouts(self._model, self._setup.model_info)

        def restore_padded() -> Layout:
            if self._setup.pack and attention is not None:
                self._model.set_attn_implementation(attention)  # type: ignore[operator]  # of transformers
            return EqualLengthLayout(padded) if batching == "equal" else padded

        return select_runner(reference, candidates(), restore_padded)

    def _convert(self, items: Sequence[Item]) -> tuple[str, ...]:
        """Convert the model to its dtype and optimize it; returns notes."""
        if self._setup.dtype == "bf16":
            self._convert_to_bf16(items)
        elif self._setup.dtype == "int8":
            self._quantize(items)
        model_info = self._setup.model_info
        converted = Reference.as_batch(self, model_info, items)
        lengths = mixed_batches(model_info.max_length, TIMED_TOKENS)[0]
        batch = self.sample_batch(lengths)
        return self.optimize(lambda: self.run(batch), lambda: results_unchanged(converted, self, self._setup.dtype))

    def _convert_to_bf16(self, items: Sequence[Item]) -> None:
        """Raises ``ModelError``."""
        convert_model(self._model, torch.bfloat16)
        try:
            run_items(self, items, self._setup.model_info)
        except RuntimeError as error:  # operations that torch does not have in bf16, such as Fourier transforms
            raise ModelError(
                f"{self._setup.model_info.requested} cannot be computed in bf16 ({error}); use --dtype fp32"
            ) from error

    def _quantize(self, items: Sequence[Item]) -> None:
        """Raises ``ModelError``."""
        try:
            reason = quantize(self._model, lambda: run_items(self, items, self._setup.model_info))
            run_items(self, items, self._setup.model_info)
        except (RuntimeError, AttributeError) as error:  # model code that inspects its nn.Linear modules
            reason = f"the model does not support replaced linear layers ({type(error).__name__})"
        if reason:
            raise ModelError(
                f"{self._setup.model_info.requested} cannot be quantized to int8: {reason}; use --dtype bf16 or fp32"
            )

    def optimize(self, run: Callable[[], object], unchanged: Callable[[], bool]) -> tuple[str, ...]:
        """Make the model faster without changing its results; returns notes.

        ``run`` runs a batch of ``TIMED_TOKENS`` tokens; ``unchanged`` compares results with those before.
        """
        notes: tuple[str, ...] = ()
        if self._setup.dtype != "int8":
            if reason := prepack_if_faster(self._model, TIMED_TOKENS, run, unchanged):
                notes += (f"weights are not prepacked: {reason}",)
            else:
                self.kept.append("prepacked")
        if isinstance(self.layout, PackedLayout):
            # Attention in fp32 is not slower without AMX, and more exact; except with bf16, it is in fp32 already.
            if self._setup.dtype == "bf16" and keep_if_not_slower(run, self.layout.set_fp32_attention) is None:
                self.kept.append("fp32 attention")
            if reason := self._trace(self.layout, unchanged):
                notes += (f"not traced, Python runs each layer: {reason}",)
            else:
                self.kept.append("traced")
        return notes

    def repeat_optimizations(self, kept: Sequence[Optimization], run: Callable[[], object]) -> None:
        """Do what ``optimize`` has kept in an earlier worker; ``run`` runs a batch of any size."""
        if "prepacked" in kept:
            prepack(self._model, TIMED_TOKENS, run)
        if isinstance(self.layout, PackedLayout):
            if self._setup.dtype == "bf16":
                self.layout.set_fp32_attention("fp32 attention" in kept)
            if "traced" in kept:
                self.layout.trace(self._traced_batch())

    def _traced_batch(self) -> ItemBatch:
        return self.sample_batch([min(TRACED_LENGTH, self._setup.model_info.max_length), 3, 3])

    def _trace(self, layout: PackedLayout, unchanged: Callable[[], bool]) -> str | None:
        """Run the model as a TorchScript graph. Returns None, or the reason why it is run by Python."""
        try:
            layout.trace(self._traced_batch())
            if unchanged():
                return None
            reason = "the results differ"
        except Exception as error:  # of model code that was not written to be traced
            reason = type(error).__name__
        layout.wrap_module(None)
        return reason


def _check_width(reference: Reference, model_info: ModelInfo) -> None:
    """Raise ``ModelError`` if the config states another width than that of the results."""
    width = reference.results.shape[-1]
    if model_info.task == "embed" and width != model_info.result_width:
        raise ModelError(
            f"{model_info.requested}: embeddings have {width} values, but {model_info.result_width} were expected from "
            "the hidden size in config.json"
        )


def _attention_of(model: torch.nn.Module) -> str | None:
    """The name of the attention implementation in use; None if the model does not use transformers' interface."""
    name: str | None = getattr(model.config, "_attn_implementation", None)
    return name


def _loaded(proof: LoadProof) -> LoadedModel:
    return LoadedModel(
        torch_version=str(torch.__version__),
        threads=torch.get_num_threads(),
        accuracy=proof.accuracy,
        notes=proof.notes,
        packed=proof.packed_variant is not None,
        proof=proof,
    )


def _summary(selected: Selection[Layout], dtype: str, accuracy: Accuracy | None) -> str:
    layout = "padded" if selected.not_packed else "packed"
    exact = f"relative error {selected.error:.1g}"
    return f"{layout}, {exact}" + (f", lowest cosine of {dtype} with fp32 {accuracy.cosine:.5f}" if accuracy else "")
