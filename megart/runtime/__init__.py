"""Asking: the only importer of llama_cpp. Needs neither torch nor transformers."""

from ..openmp import spin_briefly

spin_briefly()  # before llama_cpp loads OpenMP, which reads its settings once
