"""What zeros leave dead: channels that can be taken out, exactly.

- `ordinary`: layers of timm in terms of torch's
- `nodes`: what each operation of a traced model does to channels
- `channels`: the graph of channels: which are constant, which go together
- `compaction`: the smaller model that answers the same
- `gates`: pressure on whole channels during a search
- `fold`: batch norms into the layers before them
"""

from .channels import channel_groups as channel_groups
from .compaction import BLOCK as BLOCK, Compacted as Compacted, compact as compact
from .fold import fold_norms as fold_norms
from .gates import Gates as Gates
