"""Gate, mix and llama.cpp hooks in C++: NumPy arrays in and out, no hidden copies, GIL released.

Arrays must already have the named dtype and be C-contiguous and aligned: TypeError otherwise.
Shapes and values that do not fit: ValueError. Every message says got, expected and a remedy.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, TypedDict

import numpy as np
from numpy.typing import DTypeLike, NDArray

_Factor: TypeAlias = NDArray[np.float32] | NDArray[np.float16]
_Blocks: TypeAlias = NDArray[np.void]
"""q8_0 or q4_0: [rows, columns / 32] of megart.quant.Q8_0 or Q4_0."""

def scores(
    query: NDArray[np.float32],
    keys: _Factor,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Inner products: query [D], keys [N, D] -> [N]. Anything not finite: ValueError."""

class Lexicon:
    """Word index: terms u32 [T] with 0 after each sentence, starts i64 [N + 1]. Term 0 never counts as a word."""

    def __init__(self, terms: np.ndarray, starts: np.ndarray) -> None: ...
    def __len__(self) -> int: ...
    def df(self, terms: np.ndarray) -> np.ndarray:
        """u32 [Q] -> i64 [Q]: in how many memories each term stands."""
    def bm25(self, terms: np.ndarray, idf: np.ndarray, k1: float = 1.2, b: float = 0.5) -> np.ndarray:
        """u32 [Q], f32 [Q] -> f32 [N]. ValueError: a weight below 0 or not finite, k1 or b out of range."""
    def match(
        self, terms: np.ndarray, idf: np.ndarray, pairs: np.ndarray, rows: np.ndarray, kin: float = 0.8
    ) -> tuple[np.ndarray, np.ndarray]:
        """pairs i32 [P, 2] positions in terms, rows i64 [C] -> (present u8 [C, Q], idf sums f32 [C, 3]).

        present: 2 the word, 1 a relative (a hash with the same upper 20 bits), 0 neither. Sums: of the best
        sentence; of the pairs side by side; of the first sentence with the best one, a relative counting `kin`.
        ValueError: a row or a position that does not exist, kin out of 0 to 1.
        """

def late_interaction(
    query: np.ndarray, weights: np.ndarray, known: np.ndarray, tokens: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """i8 [T, D], f32 [T], u8 [C, T], i8 [n, D], i64 [C + 1] -> f32 [C, 3]: ColBERT's MaxSim of cosines.

    Weighted means: over its best sentence with its first (rows of zeros end one); over all of it where `known`
    is 0; over all of it, squared. ValueError: other widths, starts that do not grow from 0 to n,
    weights below 0 or not finite.
    """

def mix_all(
    a: Sequence[Sequence[_Factor | _Blocks]],
    b: Sequence[Sequence[_Factor | _Blocks]],
    gates: NDArray[np.float32],
    out_a: Sequence[_Factor | _Blocks],
    out_b: Sequence[_Factor | _Blocks],
    threads: int = 1,
) -> None:
    """Matrix i: a[i][j] [r_j, in], b[i][j] [out, r_j] (lists), out_a[i] [R, in], out_b[i] [out, R]; q8_0 among them.

    Afterwards out_b[i] @ out_a[i] == sum of gates[j] * (b[i][j] @ a[i][j]) but for rounding; what is not used is zero.
    No adapter at all makes zeros. Outputs may not share memory with anything else. Nothing is written unless all of
    them are right.
    """

def simd() -> str:
    """The level of the kernels in use: avx512, avx2, neon or scalar."""

def simd_levels() -> list[str]:
    """The levels that this processor can run, best first."""

def use_simd(name: str) -> None:
    """Choose a level for the whole process (for tests and measurements)."""

HOOK_FUNCTIONS: tuple[str, ...]
"""Names of the ggml functions whose addresses `fns` must hold, from the library already loaded."""

def tensor_set(fns: Mapping[str, int], address: int, array: _Factor | _Blocks) -> None:
    """Copy an array into the ggml_tensor at `address`, wherever its buffer lives.

    ValueError unless the dtype and the number of bytes are the tensor's own.
    """

def host_array(address: int, shape: Sequence[int], dtype: DTypeLike) -> _Factor | _Blocks:
    """A writable view of host memory at `address`; nothing is owned, nothing is checked.

    Unsafe: using it after the tensor is freed reads or writes memory that belongs to others.
    """

class _FoundTensor(TypedDict):
    name: str
    address: int
    data: int
    type: int
    ne: tuple[int, int, int, int]
    nb: tuple[int, int, int, int]
    nbytes: int
    is_host: bool

class EvalHook:
    """A cb_eval for llama.cpp that reads the rows of some tensors and finds adapter tensors.

    Keep it alive longer than every context that was given its callback. Any thread may call it.
    """

    def __init__(self, fns: Mapping[str, int]) -> None:
        """RuntimeError unless ggml's tensors are laid out as this extension believes; ValueError without an address."""

    @property
    def callback(self) -> int:
        """Address for llama_context_params.cb_eval."""

    @property
    def user_data(self) -> int:
        """Address for llama_context_params.cb_eval_user_data."""

    def watch(self, names: Sequence[str], stop: bool = False) -> None:
        """Collect the rows of tensors of exactly these names from now on, of none without any.

        With `stop` the computation ends at the last of them: llama_decode returns 0 with logits
        that mean nothing and an incomplete cache, which the caller must clear.
        """

    def take(self) -> list[NDArray[np.float32]]:
        """Of each watched tensor, the rows collected since the last take, [n_rows, n_embd], in order; then forgets them.

        ValueError when the tensor was not float32 or its width changed; the rows are dropped.
        """

    def discover(self, on: bool = True) -> None:
        """While on, note factors (names ending in .lora_a, .lora_b) of graphs being computed.

        Switching it on forgets what was found before.
        """

    def found(self) -> list[_FoundTensor]:
        """What discover noted, one entry per name."""
