"""Teaching: the only importer of torch and transformers."""

from ..openmp import wait_passively

wait_passively()  # before torch loads OpenMP, which reads its settings once
