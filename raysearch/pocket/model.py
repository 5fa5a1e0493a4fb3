"""Tokenizer, processor and chat template of the embedded LVLM: stock Hugging Face classes only."""

from transformers import LlavaProcessor, PreTrainedTokenizerFast

from raysearch.pocket.drawing import IMAGE_SIZE

PATCH_SIZE = 8
NUM_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<image>", "<assistant>")
PAD, BOS, EOS, UNKNOWN, USER, IMAGE, ASSISTANT = SPECIAL_TOKENS

CHAT_TEMPLATE = """\
{{- '<bos>' -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- '<user>' -}}
  {%- else -%}
    {{- '<assistant>' -}}
  {%- endif -%}
  {%- if message['role'] == 'assistant' -%}
    {%- generation -%}
      {%- if message['content'] is string -%}
        {{- message['content'] -}}
      {%- else -%}
        {%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}
      {%- endif -%}
      {{- '<eos>' -}}
    {%- endgeneration -%}
  {%- elif message['content'] is string -%}
    {{- message['content'] -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}
"""


def make_processor(tokenizer: PreTrainedTokenizerFast, chat_template: str = CHAT_TEMPLATE) -> LlavaProcessor:
    """The processor; its image processor needs PIL, not torchvision."""
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    half = [0.5, 0.5, 0.5]
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size=side, image_mean=half, image_std=half),
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token=IMAGE,
        chat_template=chat_template,
    )
