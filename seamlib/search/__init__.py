"""Which weights does a smaller problem need?

- `loop`: the algorithm: a search, an epoch, a step, the loss
- `settings`: what a search is told, and the course of its rates
- `found`: what it finds: epochs, the pick rule, the re-engineered model
- `checks`: what it is given, checked before the first step
- `log`: each epoch measured, the picks kept, and whether the search is over
- `checkpoints`: its state on disk, to go on from
- `many`: many problems of one model at once
- `lowering`, `capture`: what makes a step fast: products in bf16, CUDA graphs
"""

from .checks import check_protocol as check_protocol
from .found import (
    Pick as Pick,
    Reengineered as Reengineered,
    SearchStopped as SearchStopped,
    best as best,
    crossfit as crossfit,
    no_loss as no_loss,
    pick as pick,
    summary as summary,
    waited as waited,
)
from .loop import reengineer as reengineer
from .many import reengineer_many as reengineer_many
from .settings import Search as Search, path_of as path_of
