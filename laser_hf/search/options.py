"""The options of `train.py` as a search sees them: which may be varied, and what type they have."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

from ..training import Options, parse_options
from ..training.options import option_names
from ..training.run import build_objective
from .errors import SearchError
from .space import Value

# Option -> why it cannot be varied or fixed.
RESERVED = {
    "output_dir": "every run has its own folder below the --output_dir of the search",
    "overwrite_output_dir": "it would train finished points again; delete the folder of the search instead",
    "resume_from_checkpoint": "interrupted runs resume by themselves",
    "push_to_hub": "a search has many runs; publish the best one with push_to_hub.py",
    "hub_model_id": "a search has many runs; publish the best one with push_to_hub.py",
}


def parse(argv: Sequence[str]) -> Options:
    """`parse_options`, with an error in place of the end of the process.

    Raises:
        SearchError: with train.py's own message.
    """
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return parse_options(list(argv))
    except SystemExit as error:
        if not error.code:
            raise
        said = messages.getvalue().strip()
        raise SearchError(said.rpartition("error: ")[2] or said) from error


def check_fixed(fixed: Sequence[str], varied: Sequence[str] = ()) -> None:
    """Refuse options that a search sets itself.

    Raises:
        SearchError: naming the option.
    """
    for word in fixed:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_")
        if not word.startswith("--"):
            continue
        if name in RESERVED:
            raise SearchError(f"--{name} cannot be given to the runs of a search: {RESERVED[name]}")
        if name in varied:
            raise SearchError(f"--{name} is both varied by --over and fixed; leave one out")


class Typed:
    """(name, text) -> value of that option of train.py, checked as far as that goes without loading anything.

    Args:
        base: arguments of train.py that all points share.
    """

    def __init__(self, base: Sequence[str]):
        self.base = list(base)
        self.known = option_names()
        self._recipes: dict[str, dict[Value, dict[str, Any]]] = {}

    def __call__(self, name: str, text: str) -> Value:
        """The value.

        Raises:
            SearchError: no such option, one that cannot be varied, or a text that it does not take.
        """
        if name in RESERVED:
            raise SearchError(f"--over {name}: {RESERVED[name]}")
        if name == "seed":
            raise SearchError("--over seed: seeds are averaged over, give them as --seeds 1 2 3")
        if name not in self.known:
            raise SearchError(f"--over {name}: train.py has no such option; `python train.py --help` lists them")
        try:
            options = parse([*self.base, f"--{name}={text}"])
            build_objective(options.objective, options.model.projection_dim)  # checks what its loss is defined for
        except (SearchError, ValueError) as error:
            raise SearchError(f"--over {name}={text}: {error}") from error
        value = option_value(options, name)
        if not isinstance(value, int | float | str | bool):
            raise SearchError(f"--over {name}: only options with a single value can be varied, this one has {value!r}")
        self._recipes.setdefault(name, {})[value] = options.recipe()
        return value

    def check_effect(self) -> None:
        """Refuse options whose values, as far as they were read, all give one recipe.

        Raises:
            SearchError: naming the option.
        """
        for name, recipes in self._recipes.items():
            first, *others = recipes.values()
            if others and all(recipe == first for recipe in others):
                raise SearchError(
                    f"--over {name}: it does not change what is trained here, so all points would be alike"
                )


def option_value(options: Options, name: str) -> Any:
    """The value of an option, whichever group it belongs to; an enumeration's as text."""
    for group in (options.model, options.objective, options.data, options.training):
        if name in {field.name for field in dataclasses.fields(group)}:
            value = getattr(group, name)
            return getattr(value, "value", value)
    raise KeyError(name)


def shared_recipe(options: Options, varied: Sequence[str]) -> dict[str, Any]:
    """What decides the result of all points alike: the recipe without what is varied, and without the seed."""
    recipe = options.recipe()
    for group in recipe.values():
        for name in (*varied, "seed"):
            group.pop(name, None)
    return recipe
