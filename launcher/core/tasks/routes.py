"""Chooses the route of a call, for models that compute queries and documents with modules of their own.

The rules are those of ``encode_query`` and ``encode_document`` in sentence-transformers 6, which also choose the prompt
of that name. The computation of a route does not belong here.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.core.protocol.model_info import ModelInfo
from launcher.core.tasks.prompts import choose_prompt
from launcher.errors import UsageError


@dataclass(frozen=True, slots=True)
class RoutedPrompt:
    """The prompt of a call, ``text``, for a model with routes. ``second``: the call takes the second route (see
    ``Routes``)."""

    text: str
    second: bool

    def __len__(self) -> int:
        """The number of characters."""
        return len(self.text)


Prompt = str | RoutedPrompt
"""The prompt of a call; a ``RoutedPrompt`` if the model has routes."""


def choose_route(model_info: ModelInfo, route: str | None, prompt: str | None, prompt_name: str | None) -> Prompt:
    """The prompt of a call, and its route if the model has some.

    The route is ``route``, or else the model's default one. A call that names a route and no prompt gets the prompt of
    that name. Raises ``UsageError`` for a route that the model does not have, and for one that it needs.
    """
    routes = model_info.routes
    if routes is None:
        if route is not None:
            raise UsageError(f"'route' is {route[:200]!r}, but this model has no routes; omit 'route'")
        return choose_prompt(model_info, prompt, prompt_name)
    known = f"{' or '.join(map(repr, sorted((routes.first, routes.second), reverse=True)))}"
    if route is None and routes.default is None:
        raise UsageError(f"this model has no default route; 'route' must be {known}")
    if route is not None and route not in (routes.first, routes.second):
        raise UsageError(f"'route' is {route[:200]!r}; it must be {known}")
    chosen = routes.default if route is None else route
    text = choose_prompt(model_info, prompt, route if prompt_name is None else prompt_name)
    return RoutedPrompt(text, second=chosen == routes.second)
