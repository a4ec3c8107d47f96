"""Extension of the reference: constructors that pass `**options` on are shown with the arguments of their parent's."""

import re
from typing import Any

from griffe import Class, Extension, Module, Parameter, ParameterKind, Parameters

ENTRY = re.compile(r"^    (\*{0,2}\w+): .*(?:\n {5,}.*)*\n?", re.MULTILINE)  # an argument in a docstring
PASSED_ON = re.compile(r"^    \*\*options: .*\n?", re.MULTILINE)


class InheritedOptions(Extension):
    """Replace `**options` by the parent's arguments, in the signature and in the table of arguments."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Complete all classes of a package."""
        for module in pkg.modules.values():
            self.on_package(pkg=module)
        for kind in pkg.classes.values():
            if not kind.is_alias:
                complete(kind)


def complete(kind: Class) -> None:
    """Complete the constructor of a class, after those of its parents."""
    constructor = kind.members.get("__init__")
    parents = [parent for parent in kind.mro() if "__init__" in parent.members]
    if constructor is None or not parents or "options" not in constructor.parameters:
        return
    complete(parents[0])
    own = [one for one in constructor.parameters if one.name != "options"]
    fixed = {name for name, member in kind.members.items() if "class-attribute" in member.labels}
    taken = fixed | {one.name for one in own}
    passed = [one for one in [*parents[0].members["__init__"].parameters][1:] if one.name not in taken]
    constructor.parameters = Parameters(*own, *map(_keyword_only, passed))
    if kind.docstring and parents[0].docstring:
        names = {one.name for one in passed}
        lines = [entry[0] for entry in ENTRY.finditer(parents[0].docstring.value + "\n") if entry[1] in names]
        kind.docstring.value = PASSED_ON.sub(lambda match: "".join(lines), kind.docstring.value + "\n").rstrip()


def _keyword_only(one: Parameter) -> Parameter:
    return Parameter(one.name, annotation=one.annotation, kind=ParameterKind.keyword_only, default=one.default)
