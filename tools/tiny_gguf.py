"""Makes a tiny random chat model as a GGUF file, for tests: ``python tools/tiny_gguf.py OUT --arch qwen3``.

The weights are noise, everything else is real: a byte-level BPE vocabulary that encodes any text, a
ChatML template, and the tensors that llama.cpp and transformers expect of the architecture.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = (
    " the", " and", " of", " to", " in", " is", " was", " you", " that", " about", " story",
    " memory", " remember", "user", "assistant", "system", "ing", "er", "ed", "What", "Tell", "Who",
)  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# transformers gives every qwen3 GGUF heads of this size and does not read the file's own; a gemma's
# attention is scaled by the size that its family has, whatever the file says.
HEADS = {"qwen3": 128, "gemma2": 256, "gemma3": 256}


def make(
    path: str | Path,
    arch: str = "llama",
    dtype: str = "f32",
    seed: int = 0,
    *,
    hidden: int = 64,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    ffn: int = 128,
    context: int = 2048,
) -> Path:
    """Write a model of random weights to *path*; the same arguments give the same bytes.

    ``dtype`` ("f32" or "f16") is that of the matrices. The runtime reads the hidden state of layer
    2, and llama.cpp computes the last layer for the last token only: keep at least 4 layers.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"got architecture {arch!r}; expected one of {', '.join(ARCHITECTURES)}")
    tokens, merges = vocabulary()
    head = HEADS.get(arch, hidden // heads)
    # Mistral's files call themselves llama.
    writer = gguf.GGUFWriter(str(path), "llama" if arch == "mistral" else arch)
    writer.add_type("model")
    writer.add_name("Tiny Mistral v0.3" if arch == "mistral" else f"tiny {arch}")
    writer.add_block_count(layers)
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(len(tokens))
    if arch in HEADS:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if arch.startswith("gemma"):
        writer.add_sliding_window(context)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if dtype == "f16" else gguf.LlamaFileType.ALL_F32)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if arch in ("llama", "mistral") else "qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL else normal for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, array in _tensors(arch, seed, hidden, layers, heads, kv_heads, head, ffn, len(tokens)):
        writer.add_tensor(name, array.astype(np.float16 if dtype == "f16" and array.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE: all 256 bytes, every prefix of ``WORDS``, ``SPECIAL``."""
    alphabet = _byte_alphabet()
    tokens, merges = [alphabet[byte] for byte in range(256)], []
    for word in WORDS:
        spelt = "".join(alphabet[byte] for byte in word.encode())
        for end in range(1, len(spelt)):
            if spelt[: end + 1] not in tokens:
                tokens.append(spelt[: end + 1])
                merges.append(f"{spelt[:end]} {spelt[end]}")
    return [*tokens, *SPECIAL], merges


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        letters.setdefault(byte, chr(0x100 + len(letters) - len(plain)))
    return letters


def _tensors(
    arch: str,
    seed: int,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    head: int,
    ffn: int,
    vocab: int,
) -> Iterator[tuple[str, np.ndarray]]:
    random = np.random.default_rng(seed)

    def matrix(out: int, inside: int, gain: float = 1.0) -> np.ndarray:
        return random.normal(0.0, gain / np.sqrt(inside), (out, inside)).astype(np.float32)

    def near_one(size: int) -> np.ndarray:
        return random.uniform(0.8, 1.2, size).astype(np.float32)

    # A gemma multiplies its embeddings by sqrt(hidden) itself.
    yield "token_embd.weight", matrix(vocab, hidden, 1.0 if arch.startswith("gemma") else np.sqrt(hidden))
    for i in range(layers):
        block = f"blk.{i}."
        yield block + "attn_norm.weight", near_one(hidden)
        for part, size in (("q", heads * head), ("k", kv_heads * head), ("v", kv_heads * head)):
            # Sharp attention, so that what a token becomes depends on its place and company.
            yield f"{block}attn_{part}.weight", matrix(size, hidden, 1.0 if part == "v" else 1.5)
            if arch == "qwen2":
                yield f"{block}attn_{part}.bias", random.normal(0.0, 0.3, size)
            if arch in ("qwen3", "gemma3") and part != "v":
                yield f"{block}attn_{part}_norm.weight", near_one(head)
        yield block + "attn_output.weight", matrix(hidden, heads * head)
        if arch.startswith("gemma"):
            yield block + "post_attention_norm.weight", near_one(hidden)
            yield block + "post_ffw_norm.weight", near_one(hidden)
        yield block + "ffn_norm.weight", near_one(hidden)
        yield block + "ffn_gate.weight", matrix(ffn, hidden)
        yield block + "ffn_up.weight", matrix(ffn, hidden)
        yield block + "ffn_down.weight", matrix(hidden, ffn, 2.0)
    yield "output_norm.weight", near_one(hidden)
    if not arch.startswith("gemma"):  # whose embeddings are its output, too
        yield "output.weight", matrix(vocab, hidden, 2.0)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--arch", choices=ARCHITECTURES, default="llama")
    parser.add_argument("--dtype", choices=("f32", "f16"), default="f32")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    path = make(options.out, options.arch, options.dtype, options.seed)
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
