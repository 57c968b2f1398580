"""seamlib: re-engineer a trained classifier for a smaller problem (SeaM, ICSE 2023)."""

from . import records as records, runtime as runtime
from .artefact import import_seam as import_seam
from .compaction import Compacted as Compacted, compact as compact
from .cost import Flops as Flops, flops as flops, weights as weights
from .data import Batches as Batches, Source as Source, Split as Split, batches as batches, load as load
from .evaluate import accuracy as accuracy, one_vs_rest as one_vs_rest, restrict as restrict
from .export import export_onnx as export_onnx
from .finetune import Training as Training, finetune as finetune
from .indirect import Reuse as Reuse, Reused as Reused, reuse as reuse
from .many import reengineer_many as reengineer_many
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
from .restore import (
    Restored as Restored,
    RestoredStudent as RestoredStudent,
    restore as restore,
    restore_student as restore_student,
    save_student as save_student,
)
from .robustness import (
    Attack as Attack,
    Inherited as Inherited,
    attack as attack,
    craft as craft,
    crafted as crafted,
    inheritance as inheritance,
    pgd as pgd,
    white_box as white_box,
)
from .search import (
    Reengineered as Reengineered,
    Search as Search,
    SearchStopped as SearchStopped,
    crossfit as crossfit,
    pick as pick,
    reengineer as reengineer,
)
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
from .timing import Latency as Latency, latency as latency
