"""Ask a GGUF model in llama.cpp; runs in llama.cpp's own environment and is imported by nothing.

    python -I raysearch/runtimes/llama_cpp_driver.py REQUEST.json RESULT.npz

The request is that of `raysearch.runtimes.proof`. Text goes in by the token ids that the request gives, and each run of
image tokens is replaced by what llama.cpp itself makes of the picture. Prints one JSON line.
"""

import ctypes
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np
from llama_cpp import mtmd_cpp as mt

# Behind the runtime's own packages, of which one is named as a module here.
sys.path.append(str(Path(__file__).parent))
from ask_model import Refusal, main

MARKER_MARGIN = 8
NUM_BATCH = 2048


class Model:
    """A GGUF model with its projector, and one sequence."""

    def __init__(self, request: dict[str, Any]) -> None:
        ll.llama_backend_init()
        params = ll.llama_model_default_params()
        self.model = ll.llama_model_load_from_file(request["model"].encode(), params)
        if not self.model:
            raise Refusal("llama.cpp can't load the converted model")
        self.vocab = ll.llama_model_get_vocab(self.model)
        self.num_vocab = ll.llama_vocab_n_tokens(self.vocab)
        context = ll.llama_context_default_params()
        context.n_ctx = request["num_context"]
        context.n_batch = NUM_BATCH
        context.n_threads = context.n_threads_batch = request["num_threads"]
        self.context = ll.llama_init_from_model(self.model, context)
        if not self.context:
            raise Refusal("llama.cpp can't make a context for the converted model")
        self.projector = None
        if request["mmproj"]:
            options = mt.mtmd_context_params_default()
            options.n_threads, options.warmup, options.print_timings = request["num_threads"], False, False
            self.projector = mt.mtmd_init_from_file(request["mmproj"].encode(), self.model, options)
            if not self.projector:
                raise Refusal("llama.cpp can't load the converted projector")
        self.image_token = request["image_token"]
        self.num_past = 0

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text, special ones included."""
        raw = text.encode()
        room = len(raw) + MARKER_MARGIN
        tokens = (ll.llama_token * room)()
        num = ll.llama_tokenize(self.vocab, raw, len(raw), tokens, room, False, True)
        return list(tokens[:num])

    def prepare(self, question: dict[str, Any]) -> list[Any]:
        """The image parts that llama.cpp makes of a question's pictures, in their order.

        Raises:
            Refusal: it can't read or prepare one.
        """
        found = []
        for path in question["pictures"]:
            bitmap = mt.mtmd_helper_bitmap_init_from_file(self.projector, path.encode(), False)
            if not bitmap:
                raise Refusal(f"llama.cpp can't read the picture {path}")
            marker = mt.mtmd_default_marker()
            text = mt.mtmd_input_text(marker, len(marker), False, True)
            chunks = mt.mtmd_input_chunks_init()
            bitmaps = (mt.mtmd_bitmap_p_ctypes * 1)(bitmap)
            if mt.mtmd_tokenize(self.projector, chunks, ctypes.byref(text), bitmaps, 1):
                raise Refusal("llama.cpp can't prepare a picture")
            parts = [mt.mtmd_input_chunks_get(chunks, i) for i in range(mt.mtmd_input_chunks_size(chunks))]
            found += [part for part in parts if mt.mtmd_input_chunk_get_type(part) == mt.MTMD_INPUT_CHUNK_TYPE_IMAGE]
        return found

    def prefill(self, ids: Sequence[int], pictures: Sequence[Any]) -> np.ndarray:
        """(vocabulary,) logits behind a prompt, from an empty cache.

        Raises:
            Refusal: it makes another number of image tokens than the prompt has, or can't evaluate them.
        """
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)
        self.num_past = 0
        runs = [(is_image, list(run)) for is_image, run in groupby(ids, lambda token: token == self.image_token)]
        sizes = [len(run) for is_image, run in runs if is_image]
        made = [mt.mtmd_input_chunk_get_n_tokens(chunk) for chunk in pictures]
        if sizes != made:
            raise Refusal(f"llama.cpp makes {made} image tokens of a picture, transformers {sizes}")
        left = list(pictures)
        for is_image, run in runs:
            if is_image:
                self._image(left.pop(0))
            else:
                self._text(run)
        return self._logits()

    def _image(self, chunk: Any) -> None:
        past = ll.llama_pos(0)
        if mt.mtmd_helper_eval_chunk_single(
            self.projector, self.context, chunk, self.num_past, 0, NUM_BATCH, False, ctypes.byref(past)
        ):
            raise Refusal("llama.cpp can't evaluate a picture")
        self.num_past = past.value

    def _text(self, ids: Sequence[int]) -> None:
        """Append tokens to the sequence.

        Raises:
            Refusal: they can't be decoded.
        """
        for start in range(0, len(ids), NUM_BATCH):
            part = ids[start : start + NUM_BATCH]
            batch = ll.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, self.num_past + i, 1, 0
                batch.logits[i] = i == len(part) - 1
            status = ll.llama_decode(self.context, batch)
            ll.llama_batch_free(batch)
            if status:
                raise Refusal(f"llama.cpp can't decode (status {status})")
            self.num_past += len(part)

    def _logits(self) -> np.ndarray:
        """(vocabulary,) logits of the last token."""
        return np.ctypeslib.as_array(ll.llama_get_logits_ith(self.context, -1), (self.num_vocab,)).copy()

    def step(self, token: int) -> np.ndarray:
        """(vocabulary,) logits behind one further token.

        Raises:
            Refusal: it can't be decoded.
        """
        self._text([token])
        return self._logits()

    def cache_bytes(self) -> int:
        """Of the sequence's state."""
        return int(ll.llama_state_seq_get_size(self.context, 0))


if __name__ == "__main__":
    main(Model)
