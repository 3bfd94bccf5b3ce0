"""Asking: the only importer of llama_cpp. Needs neither torch nor transformers."""
