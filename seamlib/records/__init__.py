"""What ran, on what, with what result.

- `records`: one JSON file a run
- `cache`: results of long steps, kept under everything they depend on; the state in the middle of one
- `runtime`: device, precision, seed, identity of things, safe writing
"""

from .records import (
    LATER as LATER,
    PLACES as PLACES,
    Record as Record,
    find as find,
    key as key,
    read as read,
    read_all as read_all,
    table as table,
    write as write,
)
