"""The checker of shapes and types that the option --jaxtyping-packages applies; integers pass for floats."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
