"""Extension of the reference: constructors that pass `**options` on are shown with the arguments of their parent's."""

import re
from typing import Any

from griffe import Class, Extension, Module, Parameter, ParameterKind, Parameters

ENTRY = re.compile(r"^    (\w+): .*(?:\n {5,}.*)*\n", re.MULTILINE)  # an argument in a docstring
PASSED_ON = re.compile(r"^    \*\*options: arguments of \w+\.\n", re.MULTILINE)


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
    """Complete the constructor of a class that passes `**options` on, after those of its parents."""
    if kind.docstring is None or not PASSED_ON.search(kind.docstring.value + "\n"):
        return
    constructor, parent = kind.members["__init__"], next(base for base in kind.mro() if "__init__" in base.members)
    complete(parent)
    own = [one for one in constructor.parameters if one.name != "options"]
    fixed = {name for name, member in kind.members.items() if "class-attribute" in member.labels}
    taken = fixed | {one.name for one in own}
    passed = [one for one in [*parent.members["__init__"].parameters][1:] if one.name not in taken]
    constructor.parameters = Parameters(*own, *map(_keyword_only, passed))
    names = {one.name for one in passed}
    entries = [entry[0] for entry in ENTRY.finditer(parent.docstring.value + "\n") if entry[1] in names]
    kind.docstring.value = PASSED_ON.sub(lambda match: "".join(entries), kind.docstring.value + "\n").rstrip()


def _keyword_only(one: Parameter) -> Parameter:
    return Parameter(one.name, annotation=one.annotation, kind=ParameterKind.keyword_only, default=one.default)
