"""ChatML as a chat template, for students whose tokenizers know its markers."""


def chatml(image: str, video: str) -> str:
    """The template; ``image`` and ``video``: what stands for each in a text, one line each.

    The line break stands between turns instead of after each, so that no position after the last one is dead; there is
    no system turn.
    """
    return (
        "{% for message in messages %}"
        "{% if not loop.first %}{{ '\n' }}{% endif %}"
        "{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for content in message['content'] %}"
        f"{{% if content['type'] == 'image' %}}{{{{ '{image}\n' }}}}"
        f"{{% elif content['type'] == 'video' %}}{{{{ '{video}\n' }}}}"
        "{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}"
        "{% endfor %}{% endif %}"
        "{{ '<|im_end|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{% endif %}"
    )
