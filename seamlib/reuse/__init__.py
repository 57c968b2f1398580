"""From a mask to a fine-tuned student, and what it inherits.

- `finetune`: the supervised loop
- `indirect`: re-engineer, then fine-tune, in SeaM's three steps; and the methods to compare with
- `remos`: the rival's share of relevant weights (ReMoS)
- `defects`: attacks, and the share of a teacher's defects that a student has
- `backdoor`: a planted defect, and what is left of it
"""

from .defects import (
    ATTACKS as ATTACKS,
    Attack as Attack,
    Inherited as Inherited,
    attack as attack,
    craft as craft,
    crafted as crafted,
    inheritance as inheritance,
    pgd as pgd,
    white_box as white_box,
)
from .finetune import Training as Training, TrainingStopped as TrainingStopped, finetune as finetune
from .indirect import METHODS as METHODS, Reuse as Reuse, Reused as Reused, reuse as reuse
