"""Asking: the only importer of llama_cpp. Needs neither torch nor transformers."""

from ..openmp import wait_passively

wait_passively()  # before llama_cpp loads OpenMP, which reads its settings once
