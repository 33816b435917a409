"""The paper's students that transformers does not have; importing this package makes its Auto classes know them.

    import regate.models
    model = AutoModelForImageTextToText.from_pretrained("DAMO-NLP-SG/VideoLLaMA2.1-7B-16F")
"""

from regate.models import videochat2, videollama2

videochat2.register()
videollama2.register()
