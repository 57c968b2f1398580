"""Figures: each function draws a table on axes and returns them. No file is read here.

- `style`: what all figures share: the look, the legend's place, ticks in per cent
- `searches`: figures of searches, and of the masks that they find
- `costs`: figures of multiply-adds, channels and time
- `students`: figures of fine-tuned students and what they inherit
"""

from .costs import (
    accuracy_by_speed as accuracy_by_speed,
    by_engine as by_engine,
    channels as channels,
    faster as faster,
    growth as growth,
    multiply_adds as multiply_adds,
    speed as speed,
)
from .searches import (
    by_images as by_images,
    claims as claims,
    course as course,
    courses as courses,
    examples as examples,
    front as front,
    fronts as fronts,
    grown as grown,
    kept_by_layer as kept_by_layer,
    matrix as matrix,
    together as together,
    wanted as wanted,
)
from .students import (
    by_method as by_method,
    carried as carried,
    inheritance as inheritance,
    survival as survival,
    thresholds as thresholds,
)
from .style import CONTROL as CONTROL, ORIGINAL as ORIGINAL, SEAM as SEAM, above as above, style as style
