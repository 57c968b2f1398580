"""Which images, and which labels.

- `data`: named data sets, and batches of them
- `memory`: images in memory, in canonical order
- `stream`: photos that stay on disk
- `drawn`: images of seven of ImageNet's classes, made by code
- `layouts`: the official folders of the five transfer sets and of Tiny ImageNet
- `superclasses`: the published groups of classes of CIFAR-100 and ImageNet
- `tasks`: target problems, the halves of their test sets, and the original's answer to them
"""

from .data import Batches as Batches, Source as Source, Split as Split, batches as batches, load as load
from .tasks import (
    Task as Task,
    Transfer as Transfer,
    binary as binary,
    multiclass as multiclass,
    originals as originals,
    problem as problem,
    superclass as superclass,
    target_accuracies as target_accuracies,
    transfer as transfer,
)
