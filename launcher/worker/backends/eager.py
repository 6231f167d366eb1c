"""The eager backend: plain transformers and torch, in fp32, bf16 or int8.

What is relied on is proved when the model is loaded: items packed into one line, or padded to one width, give what
each gives alone, and how near bf16 or int8 come to fp32. Weights are read in fp32 and converted
tensor by tensor, so that the proof needs no second model in memory. The channel must not enter here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
)

from launcher.core.planning.footprint import mixed_batches
from launcher.core.protocol.messages import Setup
from launcher.core.protocol.model_info import SHAPES, ModelInfo, Task
from launcher.worker.backends import Ids, Loaded, ModelRefused, Output, Report, Values
from launcher.worker.layouts import Layout
from launcher.worker.layouts.packed import NotPackable, PackedLayout
from launcher.worker.layouts.padded import PaddedLayout
from launcher.worker.numerics import (
    check_items,
    check_lines,
    largest_difference,
    lowest_cosine,
    other_labels,
    rows_of,
)
from launcher.worker.prepack import prepack
from launcher.worker.quantize import quantize
from launcher.worker.timing import TOLERANCE, fastest
from launcher.worker.warmup import warm_up_ids

SAME = 0.01  # relative; fp32 rounding gives about 1e-5, padding that leaks in 0.1 and more
ACCURATE = 0.999  # lowest cosine with fp32 that needs no words
USABLE = 0.9  # below, results mean something else
SEED = 0  # random weights: every instance must have the same ones
RECORDED_LENGTH = 48  # tokens of the longest item of a recording; what it does for others is proved
KINDS: dict[Task, Any] = {
    "embed": AutoModel,
    "classify": AutoModelForSequenceClassification,
    "tag": AutoModelForTokenClassification,
}
PREPACK_TOKENS = 512  # that the weights are laid out for, and that this is measured with


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
        self._model_info = setup.model_info
        self._model: Any
        self.layout: Layout

    def load(self, report: Report) -> Loaded:
        """Weights in memory in the dtype asked for, laid out for the processor, and everything proved.

        Raises ``ModelRefused``.
        """
        report("load", 0.0, self._model_info.asked)
        self._model = _load_model(self._setup).eval()
        if self._setup.dtype != "bf16":
            _leave_the_file(self._model)
        report("load", 1.0, self._model_info.asked)
        report("check", 0.0, "items alone")
        items = check_items(self._model_info)
        self.layout = padded = PaddedLayout(self._model, self._model_info)
        alone = np.concatenate([self._run_items([item]) for item in items])
        notes = [f"attention: {getattr(self._model.config, '_attn_implementation', 'its own')}"]
        not_packed = self._pack(items, alone, report)
        if not_packed:
            self.layout = padded
            self._prove_padding(items, alone)
            notes.append(f"items are padded to one length, not packed: {not_packed}")
        report("check", 0.5, f"{self._setup.dtype}, made fast for this processor")
        notes += self._convert(items)
        accuracy, coarse = self._accuracy(items, alone)
        notes += coarse
        shown = "exact" if accuracy is None else f"lowest cosine between {self._setup.dtype} and fp32 {accuracy:.5f}"
        report("check", 1.0, f"{'padded' if not_packed else 'packed'}, {shown}")
        threads, version = torch.get_num_threads(), str(torch.__version__)
        return Loaded(version, threads, accuracy, tuple(notes), packed=not_packed is None)

    def _pack(self, items: Sequence[Ids], alone: Values, report: Report) -> str | None:
        """Take up packing when the results in a line are those of each item alone; otherwise why not.

        What came from elsewhere may raise anything when it is used in a way of ours; nothing is lost by it.
        """
        if not self._setup.pack:
            return "as it was asked for"
        report("check", 0.2, "items packed into one line")
        before = getattr(self._model.config, "_attn_implementation", None)
        reason = "its results in a line differ"
        try:
            for layout in PackedLayout.over(self._model, self._model_info):
                self.layout = layout
                difference = self._difference_in_lines(items, alone)
                if difference <= SAME:
                    report("check", 0.4, f"relative difference in a line {difference:.1g}")
                    return None
                reason = f"its results in a line differ by {difference:.2g} from those alone"
        except NotPackable as error:
            reason = str(error)
        except Exception as error:
            reason = f"its code does not take a line ({type(error).__name__})"
        if before is not None:
            self._model.set_attn_implementation(before)
        return reason

    def _difference_in_lines(self, items: Sequence[Ids], alone: Values) -> float:
        """The largest difference over the check lines."""
        return max(
            largest_difference(
                alone[rows_of(items, places, self._model_info)], self._run_items([items[place] for place in places])
            )
            for places in check_lines(items, self._model_info.max_length)
        )

    def _prove_padding(self, items: Sequence[Ids], alone: Values) -> None:
        difference = largest_difference(alone, self._run_items(items))
        if not difference <= SAME:
            raise ModelRefused(
                f"{self._model_info.asked}: the result of a text depends on the padding beside it (relative difference "
                f"{difference:.2g} over the check texts, {SAME} allowed), so this model cannot be served in batches"
            )

    def _convert(self, items: Sequence[Ids]) -> tuple[str, ...]:
        """To the dtype asked for, and made fast; what is to be said of that."""
        if self._setup.dtype == "bf16":
            self._model.to(torch.bfloat16)
        if self._setup.dtype == "int8":
            self._quantize(items)
        plain = self._run_items(items)
        lengths = mixed_batches(self._model_info.max_length, PREPACK_TOKENS)[0]
        ids = warm_up_ids(1, sum(lengths), self._model_info)

        def proves() -> bool:
            return all(same(places) for places in check_lines(items, self._model_info.max_length))

        def same(places: Sequence[int]) -> bool:
            line = [items[place] for place in places]
            before = plain[rows_of(items, places, self._model_info)]
            return lowest_cosine(before, self._run_items(line), line, self._model_info) >= ACCURATE

        return self.make_fast(lambda: self.run(ids, lengths), proves)

    def _quantize(self, items: Sequence[Ids]) -> None:
        """Raises ``ModelRefused``."""
        try:
            reason = quantize(self._model, lambda: self._run_items(items))
            self._run_items(items)
        except (RuntimeError, AttributeError) as error:  # code of the model that looks at what a Linear has
            reason = f"its code does not take int8 products ({type(error).__name__})"
        if reason:
            raise ModelRefused(f"{self._model_info.asked} cannot be run in int8: {reason}; use --dtype bf16 or fp32")

    def make_fast(self, run: Callable[[], object], proves: Callable[[], bool]) -> tuple[str, ...]:
        """Change how the model is run, not what it gives; what is to be said of that.

        ``run`` runs a batch of a middling size; ``proves`` says whether the results are still the same.
        """
        notes: tuple[str, ...] = ()
        if self._setup.dtype != "int8" and (reason := prepack(self._model, PREPACK_TOKENS, run, proves)):
            notes += (f"weights are not prepacked: {reason}",)
        if isinstance(self.layout, PackedLayout):
            if self._setup.dtype == "bf16":  # otherwise it is in fp32 already
                _choose_attention(self.layout, run)
            if reason := self._trace(self.layout, proves):
                notes += (f"not recorded, Python runs each layer: {reason}",)
        return notes

    def _trace(self, layout: PackedLayout, proves: Callable[[], bool]) -> str | None:
        """Run a recording of the model when it gives the same for lines of other lengths; otherwise why not."""
        try:
            lengths = [min(RECORDED_LENGTH, self._model_info.max_length), 3, 3]
            layout.trace(warm_up_ids(1, sum(lengths), self._model_info), lengths)
            if proves():
                return None
            reason = "it gives other results"
        except Exception as error:  # of the model's code, in a way of running it that is ours
            reason = type(error).__name__
        layout.wrap(None)
        return reason

    def _accuracy(self, items: Sequence[Ids], alone: Values) -> tuple[float | None, list[str]]:
        """The lowest cosine with results in fp32, None for fp32; what is to be said of it.

        Raises ``ModelRefused``.
        """
        dtype = self._setup.dtype
        if dtype == "fp32":
            return None, []
        found = self._run_items(items)
        accuracy = lowest_cosine(alone, found, items, self._model_info)
        if not np.isfinite(accuracy):
            raise ModelRefused(f"{self._model_info.asked}: results in {dtype} are not numbers; use --dtype fp32")
        if accuracy < USABLE:
            raise ModelRefused(
                f"{self._model_info.asked}: results in {dtype} have a cosine of only {accuracy:.3f} with fp32; "
                f"at least {USABLE} is needed; use --dtype fp32"
            )
        notes = []
        if accuracy < ACCURATE:
            notes.append(f"{dtype} is coarse for this model: cosine {accuracy:.5f} with fp32; --dtype fp32 is exact")
        if self._model_info.task == "tag" and (changed := other_labels(alone, found)):
            notes.append(f"{dtype} gives {changed} of {len(alone)} tokens of the check texts another label than fp32")
        return accuracy, notes

    def _run_items(self, items: Sequence[Ids]) -> Values:
        """Results of ``items``, longest first, as one batch."""
        return self.run(np.concatenate(items), [len(item) for item in items]).values

    @torch.inference_mode()
    def run(self, ids: Ids, lengths: Sequence[int]) -> Output:
        """Results of one batch (see ``Backend.run``)."""
        values, computed = self.layout.run(ids, lengths)
        return Output(values.numpy(), computed)


def _choose_attention(layout: PackedLayout, run: Callable[[], object]) -> None:
    """Attention in fp32 where it is no slower than in the model's own type, as on processors without AMX."""
    own = fastest(run)
    layout.attend_exactly(True)
    if fastest(run) > own * TOLERANCE:
        layout.attend_exactly(False)


def _load_model(setup: Setup) -> torch.nn.Module:
    """The model of a card in fp32, its weights in memory. Raises ``ModelRefused`` when some are missing."""
    model_info = setup.model_info
    kind = KINDS[model_info.task]
    if model_info.shape is not None:
        model = _random_model(model_info, kind)
    else:
        model, info = kind.from_pretrained(
            model_info.folder,
            local_files_only=True,
            trust_remote_code=setup.trust_remote_code,
            output_loading_info=True,
            dtype=torch.float32,
        )
        _refuse_missing_weights(model_info, info["missing_keys"])
    if model_info.task == "embed" and hasattr(model, "pooler"):
        # Its result is not used, and some models come without its weights. Not None: some models call it unasked.
        model.pooler = torch.nn.Identity()
    return model


def _random_model(model_info: ModelInfo, kind: type) -> torch.nn.Module:
    shape = SHAPES[model_info.shape or ""]
    config = BertConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.token_types,
        pad_token_id=model_info.pad_id,
        num_labels=max(1, len(model_info.labels)),
    )
    torch.manual_seed(SEED)
    model: torch.nn.Module = kind.from_config(config)  # type: ignore[attr-defined]  # transformers' auto classes
    return model


def _refuse_missing_weights(model_info: ModelInfo, missing: Sequence[str]) -> None:
    """transformers fills missing weights with random ones and goes on; such a model answers nonsense."""
    needed = sorted(key for key in missing if not (model_info.task == "embed" and key.startswith("pooler.")))
    if needed:
        raise ModelRefused(
            f"{model_info.asked}: the weights lack {len(needed)} of the tensors that {model_info.architecture} needs "
            f"for the task {model_info.task}, the first is {needed[0]}"
        )


def _leave_the_file(model: torch.nn.Module) -> None:
    """Copy weights that are still a view of the mapped file: pages of the file cache stay on whatever node first read
    them, whatever this process's memory policy is."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
