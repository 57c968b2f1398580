"""What ran, on what, with what result.

- `records`: one JSON file a run
- `cache`: results of long steps, kept under everything they depend on; the state in the middle of one
- `parameters`: of notebooks and settings: their types, their ranges, their places
- `runtime`: device, precision, seed, identity of things, safe writing
"""

from .parameters import (
    check_choice as check_choice,
    check_least as check_least,
    given as given,
    listed as listed,
    place as place,
    typed as typed,
)
from .records import (
    LATER as LATER,
    PLACES as PLACES,
    Record as Record,
    find as find,
    key as key,
    read as read,
    read_all as read_all,
    table as table,
    tensors_of as tensors_of,
    write as write,
)
