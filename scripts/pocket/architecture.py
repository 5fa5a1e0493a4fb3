"""Tokenizer and configuration of the embedded LVLM: stock Hugging Face classes only."""

from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from raysearch.pocket.drawing import IMAGE_SIZE
from raysearch.pocket.model import (
    ASSISTANT,
    BOS,
    EOS,
    IMAGE,
    NUM_IMAGE_TOKENS,
    PAD,
    PATCH_SIZE,
    SPECIAL_TOKENS,
    UNKNOWN,
    USER,
)
from raysearch.pocket.question_templates import vocabulary


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer; "?" and "," are words of their own."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate((*SPECIAL_TOKENS, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[?,]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, IMAGE, ASSISTANT],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """The untrained model, of 7 decoder layers with about 85% of its parameters."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    vision = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    decoder = MistralConfig(
        vocab_size=-len(tokenizer) // 8 * -8,
        hidden_size=160,
        intermediate_size=512,
        num_hidden_layers=7,
        num_attention_heads=12,
        num_key_value_heads=6,
        head_dim=16,
        max_position_embeddings=512,
        sliding_window=None,
        tie_word_embeddings=False,
        **ids,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=decoder,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
            image_seq_length=NUM_IMAGE_TOKENS,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            projector_hidden_act="gelu",
            tie_word_embeddings=False,
            **ids,
        )
    )
