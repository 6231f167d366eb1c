"""The texts that every model of the table is compared on. Separate because tokenizers are trained on them, too."""

from __future__ import annotations

TEXTS = (
    "no",
    "A cat sat on the mat.",
    "The committee will publish its findings on Thursday, after the figures have been checked a second time.",
    "NAÏVE Café, 12 °C: Ångström überprüft",
    "Разрешите представиться: меня зовут Анна.",
    "今天天气很好, 我们去公园 today",
    "🙂🙂 thumbs up 👍",
    "def add(a, b):\n    return a + b",
    "the tokens [PAD] [SEP] <pad> </s> [MASK] <mask> in a text",
    # Longer than any model of the table takes, so it is truncated.
    "It rained for days, and nobody went out. " * 24,
)

# With one mask token, or several.
MASKED = (
    "A [MASK] sat on the mat.",
    "The committee will publish its [MASK] on Thursday, after the [MASK] have been checked a second time.",
    "[MASK]",
    "Café [MASK], 12 °C: Ångström überprüft",
    "It rained for [MASK], and nobody went out. " + "It rained for days. " * 4,
)

# Pairs of them: the long one is the first text, the second one, and both.
PAIRS = (
    *((TEXTS[place], TEXTS[(3 * place + 4) % len(TEXTS)]) for place in range(len(TEXTS))),
    (TEXTS[-1], TEXTS[-1]),
)
HYPOTHESES = ("This example is about weather.", "This text is a question.")
PREMISES_AND_HYPOTHESES = tuple((text, hypothesis) for text in TEXTS for hypothesis in HYPOTHESES)
