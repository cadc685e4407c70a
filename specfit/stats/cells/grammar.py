"""Models from words: the grammar of `specfit fit --param-model NAME ...` and of YAML files.

========================  ==================================================================================
name                      words
========================  ==================================================================================
`AxisNorm`                channel processes axes
`AxisExp`                 channel processes shape_axis cell_axes [slope_axes]
`AxisBernstein`           channel processes shape_axis cell_axes [degree=2] [form=fractions]
`Mu`                      [processes]
`Mixture`                 primaries complements
`ABCD`                    process A=region B=region C=region D=region [Ax=region Bx=region] [corrected=true]
`SmoothABCD`              process axis A=region ... [order=1]
`package.module.Class`    words of a model of your own, as its constructor takes them (command line only)
========================  ==================================================================================

Several names are separated by commas, without spaces; `all` is every process. A name may end in `Model`, as in rabbit.
Every keyword of a model can be given as `keyword=value`. A region is `channel` or `channel:axis=bin,axis=bin`. In YAML
a model is the same text, or a mapping with `name` and the arguments of the class.
"""

from __future__ import annotations

__all__ = ["MODELS", "join_words", "parse_assignments", "parse_model", "parse_models"]

import importlib
import inspect
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from specfit.errors import InputError
from specfit.stats.cells.abcd import ABCD, SmoothABCD
from specfit.stats.cells.axis_models import AxisBernstein, AxisExp, AxisNorm
from specfit.stats.cells.models import Composite, ParamModel
from specfit.stats.cells.scale_models import Mixture, Mu

MODELS: Mapping[str, type[ParamModel]] = {
    model.__name__: model for model in (AxisNorm, AxisExp, AxisBernstein, Mu, Mixture, ABCD, SmoothABCD)
}
# Constructors that take something else than their words in a row.
REGIONS = ("A", "B", "C", "D", "Ax", "Bx")
# Keywords that may also follow as bare words, in this order.
TRAILING: Mapping[type[ParamModel], tuple[str, ...]] = {AxisExp: ("slope_axes",)}


def parse_models(entries: Sequence[str | Mapping[str, Any] | Sequence[str]], *, trusted: bool = False) -> Composite:
    """Makes a composite of several entries.

    Args:
        entries: Texts, word lists or mappings.
        trusted: Whether a dotted name may be imported: True for what the user typed, never for a file.

    Raises:
        InputError: An entry is not of the grammar.

    Example:
        >>> model = parse_models(["AxisNorm muons signal pt,eta", "AxisExp muons background mass pt,eta eta"])
        >>> [type(one).__name__ for one in model.models]
        ['AxisNorm', 'AxisExp']
    """
    return Composite(*(parse_model(entry, trusted=trusted) for entry in entries))


def parse_model(entry: str | Mapping[str, Any] | Sequence[str], *, trusted: bool = False) -> ParamModel:
    """Makes one model.

    Args:
        entry: A text such as `"AxisNorm muons signal pt,eta"`, its words, or a mapping with `name` and arguments.
        trusted: Whether a dotted name may be imported.

    Raises:
        InputError: The name is unknown, or the words do not fit the model.
    """
    if isinstance(entry, Mapping):
        arguments = dict(entry)
        name = str(arguments.pop("name", ""))
        return _made(_model_class(name, trusted=trusted), name, [], arguments)
    words = shlex.split(entry) if isinstance(entry, str) else list(entry)
    if not words:
        raise InputError(f"param-model: a name is expected first, one of {', '.join(MODELS)}")
    model = _model_class(words[0], trusted=trusted)
    positional, keywords = [], {}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if equals and key.isidentifier():
            keywords[key] = value if key in REGIONS else yaml.safe_load(value)
        else:
            positional.append(word)
    return _made(model, words[0], positional, keywords)


def join_words(arguments: Sequence[str]) -> list[str]:
    """Makes one argument of each `--param-model` and the words after it, up to the next option.

    Example:
        >>> join_words(["fit", "z.yaml", "--param-model", "AxisNorm", "muons", "signal", "pt", "--json"])
        ['fit', 'z.yaml', '--param-model=AxisNorm muons signal pt', '--json']
    """
    joined: list[str] = []
    rest = list(arguments)
    while rest:
        joined.append(rest.pop(0))
        if joined[-1] == "--param-model":
            words = []
            while rest and not rest[0].startswith("-"):
                words.append(rest.pop(0))
            joined[-1] = f"--param-model={shlex.join(words)}"
    return joined


def parse_assignments(option: str, texts: Sequence[str], n: int) -> dict[str, tuple[float, ...]]:
    """Reads texts such as `slope_*=0,5` into numbers by name.

    Args:
        option: What the message calls them.
        texts: The texts.
        n: How many numbers each has.

    Raises:
        InputError: A text is not of this form.
    """
    found = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if not name or len(numbers) != n:
            raise InputError(f"{option}: NAME={','.join(['NUMBER'] * n)} is expected, {text!r} came")
        found[name] = numbers
    return found


def _model_class(name: str, *, trusted: bool) -> type[ParamModel]:
    known = MODELS.get(name) or MODELS.get(name.removesuffix("Model"))
    if known is not None:
        return known
    module, _, attribute = name.rpartition(".")
    if not module or not trusted:
        hint = "; a dotted name is taken on the command line only" if module else ""
        raise InputError(f"param-model: {name!r} is none of {', '.join(MODELS)}{hint}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"param-model {name}: it cannot be imported ({error})") from None
    if not (isinstance(found, type) and issubclass(found, ParamModel)):
        raise InputError(f"param-model {name}: a subclass of specfit.stats.cells.ParamModel is expected")
    return found


def _made(model: type[ParamModel], name: str, words: Sequence[str], keywords: Mapping[str, Any]) -> ParamModel:
    arguments = dict(keywords)
    regions = {key: arguments.pop(key) for key in REGIONS if key in arguments}
    if regions:
        arguments["regions"] = regions
    signature = inspect.signature(model)
    bare = [key for key, p in signature.parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and key != "regions"]
    order = [*bare, *TRAILING.get(model, ())]
    if len(words) > len(order):
        raise InputError(
            f"param-model {name}: at most {len(order)} words are expected, {len(words)} came; {_usage(model)}"
        )
    for key, word in zip(order, words, strict=False):
        if key in arguments:
            raise InputError(f"param-model {name}: {key} came twice; {_usage(model)}")
        arguments[key] = word
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise InputError(f"param-model {name}: {error}; {_usage(model)}") from None
    return model(**arguments)


def _usage(model: type[ParamModel]) -> str:
    """Says how the words of a model go."""
    parameters = inspect.signature(model).parameters.values()
    shown = [p.name if p.default is p.empty else f"[{p.name}]" for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    return f"usage: {model.__name__} {' '.join([*shown, *(f'[{key}]' for key in TRAILING.get(model, ()))])}"
