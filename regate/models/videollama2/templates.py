"""Chat templates: those of the language models, with one marker for each image or video at the head of a question.

Answers stand inside {% generation %}, each with the marker that ends it: these are the targets. (The original training
of v2.1 also supervised the line break after `<|im_end|>`, which no generation ever reaches.)
"""

_TEXT = (
    "{% macro text(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for item in content if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}{% endif %}{% endmacro %}"
    "{% macro seats(content) %}{% if content is not string %}"
    "{% for item in content if item['type'] in ('image', 'video') %}{{ '<' + item['type'] + '>\n' }}{% endfor %}"
    "{% endif %}{% endmacro %}"
)

QWEN2 = (
    _TEXT + "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ text(message['content']) + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ seats(message['content']) + text(message['content']) + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

MISTRAL = (
    _TEXT + "{{ bos_token }}{% set state = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set state.system = text(message['content']) + '\n\n' %}"
    "{% elif message['role'] == 'user' %}"
    "{{ '[INST] ' + state.system + seats(message['content']) + text(message['content']) + ' [/INST]' }}"
    "{% set state.system = '' %}"
    "{% else %}{% generation %}{{ ' ' + text(message['content']) + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}"
)

TEMPLATES = {"qwen2": QWEN2, "mistral": MISTRAL}
