"""The micro students' tokenizer and processor: byte-level BPE trained on the world's text, in InternVL's stock classes.

The stock video text is ``Frame1: <img><IMG_CONTEXT>...</img>\\n`` for every frame. Here ``Frame1:`` ... are added
tokens and the markers swallow the white space beside them, so a frame costs three markers and its visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

PAD, EOS, START, END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CONTEXT, IMG, END_IMG, VIDEO = "<IMG_CONTEXT>", "<img>", "</img>", "<video>"
SPECIALS = (PAD, EOS, START, END, CONTEXT, IMG, END_IMG, VIDEO)
MAX_FRAME_MARKERS = 8

# A word with the space before it, single digits, punctuation, line breaks: Qwen's splits, as far as we need them.
WORD_SPLIT = r" ?[\p{L}']+| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"

# InternVL's own template, but the line break stands between turns instead of after each (no dead last position).
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif content['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `vocab_size` entries, special tokens included. Deterministic in `texts`."""
    markers = [f"Frame{i + 1}:" for i in range(MAX_FRAME_MARKERS)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIALS) - len(markers),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=t == END_IMG) for t in SPECIALS])
    backend.add_tokens([AddedToken(t, special=False, normalized=False, rstrip=True) for t in markers])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        padding_side="right",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={
            "start_image_token": IMG,
            "end_image_token": AddedToken(END_IMG, special=True, normalized=False, rstrip=True),
            "context_image_token": CONTEXT,
            "video_token": VIDEO,
        },
    )


def build_processor(
    tokenizer: PreTrainedTokenizerFast, image_size: int = 64, image_seq_length: int = 4
) -> InternVLProcessor:
    """The stock InternVL processor at micro size: one tile per image, frames as they come (no sampling)."""
    size = {"height": image_size, "width": image_size}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=size, min_patches=1, max_patches=1),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size, do_sample_frames=False),
        image_seq_length=image_seq_length,
        chat_template=CHAT_TEMPLATE,
    )


def single_token_share(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> float:
    """Share of the words (split at white space and punctuation, counted with repetition) that are one token."""
    split, vocab = tokenizer.backend_tokenizer.pre_tokenizer, tokenizer.get_vocab()
    pieces = [piece for text in texts for piece, _ in split.pre_tokenize_str(text)]
    return sum(piece in vocab for piece in pieces) / max(len(pieces), 1)
