"""A model on its way out: what it weighs, costs and takes, and files for other engines.

- `operators`: multiply-adds of each operator
- `cost`: weights, and multiply-adds with and without zeros
- `timing`: latency, engine by engine
- `export`: ONNX files
- `compare`: models side by side on every engine
- `import_seam`: masks that SeaM's own code made
"""

from .compare import latencies as latencies
from .cost import Flops as Flops, flops as flops, weights as weights
from .export import export_onnx as export_onnx
from .import_seam import import_seam as import_seam
from .timing import ENGINES as ENGINES, Latency as Latency, installed as installed, latency as latency
