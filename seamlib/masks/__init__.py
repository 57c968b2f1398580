"""Which weights of a model are kept.

- `masks`: scores, binary masks, the masked call and its straight-through gradient; masks to compare with
- `norms`: what batch norm became of: one scale and one shift a channel
- `file`: the mask file
- `overlap`: what the masks of several problems share
"""

from .file import MaskFile as MaskFile, load_masks as load_masks, save_masks as save_masks
from .masks import (
    NORMS as NORMS,
    Masks as Masks,
    apply_masks as apply_masks,
    binarize as binarize,
    drawn as drawn,
    kept_fraction as kept_fraction,
    largest as largest,
    maskable as maskable,
    masked_call as masked_call,
    new_scores as new_scores,
    shuffled as shuffled,
)
from .norms import apply_norms as apply_norms, batch_norms as batch_norms, read_norms as read_norms
from .overlap import jaccard as jaccard, wanted as wanted
