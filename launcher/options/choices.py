"""The literal types of options. Each list of choices is written here and nowhere else.

Separate and without imports, so that ``core``, which must not import options, can use the same types.
"""

from __future__ import annotations

from typing import Literal

# The tasks that --task names. A custom task is named by its class, and is "custom" from then on.
NamedTask = Literal[
    "embed", "classify", "tag", "rerank", "zero-shot", "sparse-embed", "token-embed", "fill-mask", "question-answering"
]  # fmt: skip
Task = Literal[NamedTask, "custom"]
TaskChoice = Literal["auto", NamedTask]
RunDtype = Literal["bf16", "fp32", "int8"]
Dtype = Literal["auto", RunDtype]
Backend = Literal["eager", "compile", "fake"]
Layout = Literal["auto", "sorted", "fifo"]
Allocator = Literal["auto", "tcmalloc", "jemalloc", "system"]
OpenMP = Literal["auto", "intel", "gnu"]
# auto: isolated cpus are used only if the cpuset and the affinity mask leave no others.
IsolatedPolicy = Literal["auto", "use", "avoid"]
OnFailure = Literal["stop", "continue", "restart"]
LogLevel = Literal["debug", "info", "warning", "error"]
ExportTarget = Literal["shell", "systemd", "compose", "slurm"]
ExportMode = Literal["instances", "server"]
EmbeddingsApi = Literal["openai", "tei"]
TokenIdsPolicy = Literal[
    "refuse", "accept",
    "cl100k_base", "o200k_base", "p50k_base", "r50k_base", "gpt2",  # encodings of tiktoken
]  # fmt: skip
VectorEncoding = Literal["float", "base64"]
# What a server does when the machine has changed: it makes another plan for it, or only says so.
OnMachineChange = Literal["replan", "report"]
# How the instances of a change start: next to the old ones, or each in place of an old one.
ChangeOrder = Literal["auto", "beside", "in_place"]
