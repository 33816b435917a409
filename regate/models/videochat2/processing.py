"""VideoChat2's processor: prompt, placeholders, pixels, and the instruction in the Q-Former's own tokens.

A conversation reads, as in the original's training (every space included):

    {instruction} [INST] <Video>VISUAL TOKENS</Video> [/INST] [INST] question [/INST] answer </s> [INST] ...

The instruction is the system message. It goes to the language model and to the Q-Former. Answers, each with its
`</s>`, are the only targets.
"""

from typing import Any, ClassVar

from transformers import BatchFeature, ProcessorMixin

from regate.models.videochat2.pixels import STATISTICS, middle_frames

VIDEO_TOKEN, IMAGE_TOKEN = "<video>", "<image>"

_TEMPLATE = """\
{%- macro text_of(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}{{ content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}
{%- endif -%}
{%- endmacro -%}
{%- set default_system = SYSTEM -%}
{%- set ns = namespace(gap='') -%}
{{- bos_token -}}
{%- if default_system and messages[0]['role'] != 'system' -%}
{{- default_system -}}{%- set ns.gap = ' ' -%}
{%- endif -%}
{%- for message in messages -%}
{%- set text = text_of(message['content']) -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- ' ' + text + ' ' + eos_token -}}{%- endgeneration -%}
{%- elif message['role'] == 'system' -%}
{{- ns.gap + text -}}
{%- else -%}
{%- if message['content'] is not string -%}
{%- for item in message['content'] -%}
{%- if item['type'] in ('image', 'video') -%}
{{- ns.gap + '[INST] <' + item['type'] + '> [/INST]' -}}{%- set ns.gap = ' ' -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if text -%}{{- ns.gap + '[INST] ' + text + ' [/INST]' -}}{%- endif -%}
{%- endif -%}
{%- if text -%}{%- set ns.gap = ' ' -%}{%- endif -%}
{%- endfor -%}
"""


def chat_template(system: str = "") -> str:
    """The chat template; `system` is the instruction of conversations that have none of their own."""
    quoted = system.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return _TEMPLATE.replace("SYSTEM", f"'{quoted}'")


class VideoChat2Processor(ProcessorMixin):
    """Text, images and videos -> the inputs of `VideoChat2ForConditionalGeneration`.

    Args:
        image_processor, video_processor: of `regate.models.videochat2.pixels`.
        tokenizer: the language model's, with the special tokens `<video>` and `<image>`.
        qformer_tokenizer: the Q-Former's (bert-base-uncased and `[DEC]`).
        num_image_tokens: visual tokens of an image or a video: all queries of the Q-Former, 96.
        image_statistics: "imagenet", as in the original's training, or "clip", as in its demos; sets mean and standard
            deviation of both visual processors. None leaves theirs.
        max_qformer_length: longer instructions are cut in front, as in the original.
        frame_times: write "The video contains T frames sampled at ... seconds." behind a video whose frame rate is
            known, as the original's stage 3 does in training (`add_second_msg`) and its evaluation does not.
        chat_template: of `chat_template(system)`.

    Raises:
        ValueError: a tokenizer without a visual token; statistics of another name.
    """

    videos_kwargs: ClassVar[dict[str, Any]] = {"return_metadata": True}

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        qformer_tokenizer: Any,
        video_processor: Any,
        num_image_tokens: int = 96,
        image_statistics: str | None = "imagenet",
        max_qformer_length: int = 512,
        frame_times: bool = False,
        chat_template: str | None = None,
    ) -> None:
        for name, token in (("image", IMAGE_TOKEN), ("video", VIDEO_TOKEN)):
            token_id = tokenizer.get_vocab().get(token)
            if token_id is None:
                raise ValueError(
                    f"the tokenizer has no {name} token {token!r}, expected one: add it with "
                    f"tokenizer.add_special_tokens({{'additional_special_tokens': [{VIDEO_TOKEN!r}, {IMAGE_TOKEN!r}]}})"
                )
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", token_id)
        if image_statistics is not None:
            if image_statistics not in STATISTICS:
                raise ValueError(f"image_statistics is {image_statistics!r}, expected one of {', '.join(STATISTICS)}")
            for part in (image_processor, video_processor):
                part.image_mean, part.image_std = STATISTICS[image_statistics]
        self.num_image_tokens = num_image_tokens
        self.image_statistics = image_statistics
        self.max_qformer_length = max_qformer_length
        self.frame_times = frame_times
        template = _DEFAULT_TEMPLATE if chat_template is None else chat_template
        super().__init__(image_processor, tokenizer, qformer_tokenizer, video_processor, chat_template=template)

    @staticmethod
    def choose_frames(total: int, num_frames: int) -> list[int]:
        """Which frames of a video this model is given: the original's "middle" sampling."""
        return middle_frames(total, num_frames)

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        instructions: str | list[str] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Encodes a batch; see `ProcessorMixin`.

        Args:
            instructions: for the Q-Former, one a text; None: what stands before the text's first `[INST]`.

        Returns:
            What the tokenizer makes; `pixel_values` [images, 3, H, W], `pixel_values_videos` [videos, T, 3, H, W];
            `qformer_input_ids` and `qformer_attention_mask` int64 [images + videos, K], in the order in which images
            and videos stand in the texts.

        Raises:
            ValueError: other numbers of images, videos or instructions than the texts need.
        """
        texts = [text] if isinstance(text, str) else text
        bos = self.tokenizer.bos_token
        if texts and bos and all(one.startswith(bos) for one in texts):
            kwargs.setdefault("add_special_tokens", False)
        inputs = super().__call__(images=images, text=texts, videos=videos, **kwargs)
        if texts is None or (images is None and videos is None):
            return inputs
        if instructions is None:
            instructions = [one.removeprefix(bos or "").partition("[INST]")[0].strip() for one in texts]
        instructions = [instructions] if isinstance(instructions, str) else instructions
        if len(instructions) != len(texts):
            raise ValueError(f"found {len(instructions)} instructions, expected one for each of {len(texts)} texts")
        counts = [one.count(IMAGE_TOKEN) + one.count(VIDEO_TOKEN) for one in texts]
        encoded = self.qformer_tokenizer(
            [instruction for instruction, count in zip(instructions, counts, strict=True) for _ in range(count)],
            padding=True,
            truncation=True,
            max_length=self.max_qformer_length,
        )
        visual = {f"qformer_{name}": encoded[name] for name in ("input_ids", "attention_mask")}
        tensor_type = kwargs.get("return_tensors") or kwargs.get("text_kwargs", {}).get("return_tensors")
        inputs.update(BatchFeature(visual, tensor_type=tensor_type))
        return inputs

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        """What stands in the place of `<image>`."""
        return f"<Image>{IMAGE_TOKEN * self.num_image_tokens}</Image>"

    def replace_video_token(self, video_inputs: dict, video_idx: int, **kwargs: Any) -> str:
        """What stands in the place of `<video>`."""
        clip = f"<Video>{VIDEO_TOKEN * self.num_image_tokens}</Video>"
        known = video_inputs["video_metadata"][video_idx]
        if not self.frame_times or not known.fps or known.frames_indices is None:
            return clip
        seconds = ", ".join(str(round(float(index) / known.fps, 1)) for index in known.frames_indices)
        return f"{clip} The video contains {len(known.frames_indices)} frames sampled at {seconds} seconds."

    @property
    def model_input_names(self) -> list[str]:
        names = [*self.tokenizer.model_input_names, "pixel_values", "pixel_values_videos"]
        return [*names, "qformer_input_ids", "qformer_attention_mask"]


_DEFAULT_TEMPLATE = chat_template()
