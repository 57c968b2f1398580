"""seamlib: re-engineer a trained classifier for a smaller problem (SeaM, ICSE 2023).

- `masks`: which weights of a model are kept
- `search`: which weights a smaller problem needs: `reengineer`, `Search`
- `structure`: what zeros leave dead is taken out: `compact`
- `problems`: which images, and which labels
- `models`: source models and where their weights come from
- `reuse`: fine-tuning, and inherited defects; as an attribute the function of that name, so its files come by
  `from seamlib.reuse import defects`
- `ship`: weights, multiply-adds, latency, ONNX files
- `records`: what ran, on what, with what result
- `plain`: what a model must be for any of these
- `evaluate`: accuracy, and what the untouched original reaches
- `trial`: a copy of a model, and what it says about an example
- `restore`: models back from their records
- `together`: binary models put together
- `figures`: (axes, table) -> axes
"""

from . import records as records
from .evaluate import (
    OneVsRest as OneVsRest,
    Restrict as Restrict,
    RestrictedHead as RestrictedHead,
    accuracy as accuracy,
    one_vs_rest as one_vs_rest,
    restrict as restrict,
)
from .masks import (
    apply_masks as apply_masks,
    binarize as binarize,
    kept_fraction as kept_fraction,
    load_masks as load_masks,
    maskable as maskable,
    masked_call as masked_call,
    save_masks as save_masks,
)
from .models import build as build, new_head as new_head, pretrained as pretrained, split as split, student as student
from .problems import (
    Batches as Batches,
    Source as Source,
    Split as Split,
    Task as Task,
    Transfer as Transfer,
    batches as batches,
    binary as binary,
    load as load,
    multiclass as multiclass,
    originals as originals,
    problem as problem,
    superclass as superclass,
    target_accuracies as target_accuracies,
    transfer as transfer,
)
from .records import runtime as runtime
from .restore import (
    Restored as Restored,
    RestoredStudent as RestoredStudent,
    restore as restore,
    restore_student as restore_student,
    save_student as save_student,
)
from .reuse import (
    Attack as Attack,
    Inherited as Inherited,
    Reuse as Reuse,
    Reused as Reused,
    Training as Training,
    attack as attack,
    craft as craft,
    crafted as crafted,
    finetune as finetune,
    inheritance as inheritance,
    pgd as pgd,
    reuse as reuse,
    white_box as white_box,
)
from .search import (
    Reengineered as Reengineered,
    Search as Search,
    SearchStopped as SearchStopped,
    crossfit as crossfit,
    pick as pick,
    reengineer as reengineer,
    reengineer_many as reengineer_many,
)
from .ship import (
    Flops as Flops,
    Latency as Latency,
    export_onnx as export_onnx,
    flops as flops,
    import_seam as import_seam,
    latency as latency,
    weights as weights,
)
from .structure import Compacted as Compacted, compact as compact
