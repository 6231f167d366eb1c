"""Workloads: texts from a file, or texts of random words whose lengths follow the built-in distribution, a histogram,
or a fixed length.

The built-in distribution is defined in ``core.planning.length_classes``: before truncation, mean 43, p50 26, p90 91 and
p99 262 tokens, including special tokens. The words are common ones that are a single token in WordPiece and BPE
vocabularies, so that a text has two tokens more than words.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pathlib import Path

from launcher.core.cost.length_histogram import Histogram
from launcher.core.planning.length_classes import BUILTIN_LONGEST, BUILTIN_MEDIAN, BUILTIN_SHORTEST, BUILTIN_SPREAD
from launcher.errors import UsageError
from launcher.host.files.length_histogram import read_histogram
from launcher.options.bench import WorkloadOptions

SPECIAL_TOKENS = 2

WORDS = (  # noqa: SIM905 - a list of this many literals cannot be read
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what its "
    "about than into them can only other time new some could these two may first then do any like my now over such "
    "our man me even most made after also well before must through years where much your way down should because "
    "long each just state people those too world little good very make year still see own work men day get here old "
    "life both between being under three never know same last another while us off might great go come since "
    "against right came take used himself few house use place during high without again home around small however "
    "found part once general say upon school every water number left war until always away something fact though "
    "public put less head think hand enough almost city night better side far end face given system point order "
    "power early country set government large group young second later often money large four light room white book "
    "letter window garden river mountain bread coffee music winter summer market station engine paper answer "
).split()


@dataclass(frozen=True, slots=True)
class Workload:
    """Texts in the order in which they are sent, and a description of their source."""

    texts: tuple[str, ...]
    source: str


def builtin_workload(count: int, *, seed: int = 1, longest: int = BUILTIN_LONGEST) -> Workload:
    """``count`` texts with the built-in length distribution, truncated to ``longest`` tokens; deterministic by
    seed."""
    rng = random.Random(seed)
    lengths = [round(rng.lognormvariate(math.log(BUILTIN_MEDIAN), BUILTIN_SPREAD)) for _ in range(count)]
    bounded = [min(max(length, BUILTIN_SHORTEST), longest) for length in lengths]
    return Workload(
        tuple(words(length, rng) for length in bounded), f"built-in workload, seed {seed}, at most {longest} tokens"
    )


def histogram_workload(
    histogram: Histogram, count: int, name: str, *, seed: int = 1, longest: int | None = None
) -> Workload:
    """``count`` texts with lengths drawn from a histogram called ``name``, truncated to ``longest`` tokens if given."""
    rng = random.Random(seed)
    lengths, weights = zip(*histogram.counts, strict=True)
    drawn = rng.choices(lengths, weights, k=count)
    bounded = [max(length if longest is None else min(length, longest), SPECIAL_TOKENS + 1) for length in drawn]
    cut = "" if longest is None else f", at most {longest} tokens"
    return Workload(tuple(words(length, rng) for length in bounded), f"lengths of {name}, seed {seed}{cut}")


def fixed_workload(count: int, tokens: int, *, seed: int = 1) -> Workload:
    """``count`` texts of ``tokens`` tokens each."""
    rng = random.Random(seed)
    return Workload(tuple(words(tokens, rng) for _ in range(count)), f"{tokens} tokens each, seed {seed}")


def words(tokens: int, rng: random.Random) -> str:
    """A text of ``tokens`` tokens, including the two special ones that the tokenizer adds."""
    return " ".join(rng.choices(WORDS, k=max(1, tokens - SPECIAL_TOKENS)))


def file_workload(path: Path, count: int | None = None) -> Workload:
    """The non-empty lines of a UTF-8 file, repeated or truncated to ``count``. Raises ``UsageError``."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--texts {path}: must be a UTF-8 file with one text per line: {error}") from error
    texts = [line for line in lines if line]
    if not texts:
        raise UsageError(f"--texts {path}: the file contains no text; it must have one text per line")
    wanted = len(texts) if count is None else count
    return Workload(tuple(texts[i % len(texts)] for i in range(wanted)), f"{path.name}, {len(texts)} texts")


def make_workload(options: WorkloadOptions) -> Workload:
    """The texts that the options request. Raises ``UsageError``."""
    sources = (("--texts", options.texts), ("--lengths", options.lengths), ("--tokens", options.tokens))
    given = [name for name, value in sources if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other; give one of them")
    count, seed, longest = options.count, options.seed, options.longest
    if longest is not None and (options.texts or options.tokens):
        raise UsageError(f"--longest is for random lengths, and {given[0]} sets the lengths; omit one of them")
    if options.texts is not None:
        return file_workload(options.texts, count)
    if options.lengths is not None:
        histogram = read_histogram(options.lengths)
        return histogram_workload(histogram, count, options.lengths.name, seed=seed, longest=longest)
    if options.tokens is not None:
        return fixed_workload(count, options.tokens, seed=seed)
    return builtin_workload(count, seed=seed, longest=longest or BUILTIN_LONGEST)
