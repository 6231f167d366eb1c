"""How errors name the inputs of a request.

Separate from the tokenizer because a task whose items are combined from several fields, such as a query and documents,
has names of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class InputNames:
    """Names inputs ``field[index]``, counted from ``first``, or ``field`` alone for a ``lone`` one.

    ``truncate_hint`` tells the caller how to have long inputs truncated. ``halves`` is appended for one text of a pair.
    """

    field: str
    first: int = 0
    lone: bool = False
    truncate_hint: str = 'send "truncate": true to truncate it'
    halves: tuple[str, str] = (".text", ".text_pair")

    def of(self, index: int) -> str:
        """The name of the input with this index."""
        return f"'{self._place(index)}'"

    def of_half(self, index: int, side: int) -> str:
        """The name of a text of a pair: of its first one if ``side`` is 0, of its second one if it is 1."""
        return f"'{self._place(index)}{self.halves[side]}'"

    def _place(self, index: int) -> str:
        return self.field if self.lone else f"{self.field}[{self.first + index}]"


@dataclass(frozen=True, slots=True)
class RankingNames(InputNames):
    """Names the pairs of a query and a document; ``field`` is that of the documents."""

    def of(self, index: int) -> str:
        """See the base class."""
        return f"the pair of 'query' and '{self._place(index)}'"

    def of_half(self, index: int, side: int) -> str:
        """See the base class."""
        return f"'{self._place(index)}'" if side else "'query'"


@dataclass(frozen=True, slots=True)
class ZeroShotNames(InputNames):
    """Names the pairs of a text and the hypothesis of a label; each text has ``labels`` pairs."""

    labels: int = 1
    labels_field: str = "candidate_labels"

    def of(self, index: int) -> str:
        """See the base class."""
        return f"the pair of {self.of_half(index, 0)} and {self.of_half(index, 1)}"

    def of_half(self, index: int, side: int) -> str:
        """See the base class."""
        text, label = divmod(self.first + index, self.labels)
        if side:
            return f"'{self.labels_field}[{label}]'"
        return f"'{self.field}'" if self.lone else f"'{self.field}[{text}]'"
