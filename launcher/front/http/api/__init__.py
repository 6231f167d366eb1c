"""The API families that the server has, one module each.

To add a route, describe it in the module of its family; to add a family, list it here. Routing, ``/openapi.json`` and
``/docs`` follow from the descriptions. Code shared by several families belongs in the parent package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from launcher.front.http.api import admin, openai, operations, predict
from launcher.front.http.route import ApiFamily
from launcher.front.http.services import Services

FamilyFactory = Callable[[Services], ApiFamily]

FAMILIES: Sequence[FamilyFactory] = (openai.family, predict.family, operations.family, admin.family)
