"""The extension of mkdocs.yml that reads docstrings and signatures as Python has them at run time."""

import inspect
import re
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

import griffe


def as_markdown(text: str) -> str:
    """Powers, such as 2**-56, are no bold text."""
    parts = re.split(r"(`[^`]*`|^ *>>>.*$)", text, flags=re.M)
    return "".join(part if number % 2 else part.replace("**", r"\*\*") for number, part in enumerate(parts))


class RunTime(griffe.Extension):
    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_members(self, *, obj: griffe.Object, **_: Any) -> None:
        """Special methods are not documented; `filters` would show those with a docstring."""
        for name in [name for name in obj.members if name.startswith("__") and name not in ("__all__", "__init__")]:
            obj.del_member(name)

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        if not isinstance(node.obj, property | GetSetDescriptorType | MemberDescriptorType):
            attr.docstring = None  # that of the value's type

    def on_class_instance(self, *, node: Any, cls: griffe.Class, **_: Any) -> None:
        """Optimizers set `__signature__`."""
        if not isinstance(signature := vars(node.obj).get("__signature__"), inspect.Signature):
            return
        parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
        for given in signature.parameters.values():
            kind = griffe.ParameterKind[given.kind.name.lower()]
            default = None if given.default is given.empty else repr(given.default)
            parameters.append(griffe.Parameter(given.name, kind=kind, default=default))
        cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters)))
