"""Teaching: the only importer of torch and transformers."""

from ..openmp import spin_briefly

spin_briefly()  # before torch loads OpenMP, which reads its settings once
