"""Tokens and targets as the original makes them, with a tokenizer that is built like Mistral's (spaces become "▁")."""

import json

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from regate.data import ConversationEncoder
from regate.models.videochat2 import VideoChat2Processor, load_processor
from tests.media_files import write_video
from tests.models.tiny_videochat2 import tiny_processor, tiny_qformer_tokenizer

CONVERSATIONS = [
    ("Watch the video.", [("What happens?", "A ball moves."), ("And then?", "It falls, I think.")]),
    ("", [("What happens?", "It falls.")]),
    ("Watch the video.", [("", "A ball falls."), ("Is it red?", "Yes"), ("Sure?", "No.")]),
]


def mistral_like(scheme: str) -> PreTrainedTokenizerFast:
    """A BPE over "▁" words. "prepend": as in Mistral-7B-Instruct-v0.2's own file, "first": as newer files have it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    replace = normalizers.Replace(" ", "▁")
    if scheme == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    texts = [
        "[INST] <Video></Video> [/INST]",
        *(t for i, qa in CONVERSATIONS for t in (i, *(x for p in qa for x in p))),
    ]
    words = ["<unk>", "<s>", "</s>"]
    splitter = Tokenizer(models.BPE(unk_token="<unk>"))
    splitter.pre_tokenizer = pre_tokenizers.Metaspace()
    splitter.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=160, special_tokens=words, show_progress=False))
    learnt = json.loads(splitter.to_str())["model"]
    tokenizer.model = models.BPE(learnt["vocab"], [tuple(m) for m in learnt["merges"]], unk_token="<unk>")
    tokenizer.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in words])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in ("<video>", "<image>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def of_the_original(tokenizer, instruction: str, pairs: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Ids and labels: the text before and behind the visual tokens is tokenised by itself, and targets are found by
    counting the tokens of its pieces."""

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    text = (instruction + " " if instruction else "") + "[INST] <Video></Video> [/INST]"
    for question, answer in pairs:
        text += (f" [INST] {question} [/INST]" if question else "") + f" {answer} </s>"
    before, _, behind = text.strip().partition("</Video>")
    behind = "</Video>" + behind
    pieces = behind.split(" [/INST] ")
    pieces = [piece + " [/INST] " for piece in pieces[:-1]] + [pieces[-1]]
    labels = list(ids_of(behind))
    done = len(ids_of(pieces[0].rstrip()))
    labels[:done] = [-100] * done
    for piece in pieces[1:-1]:
        size = len(ids_of(piece.rstrip()))
        answer = len(ids_of(piece.split("[INST] ")[0].rstrip()))
        labels[done + answer : done + size] = [-100] * (size - answer)
        done += size
    head = [1, *ids_of(before), *[tokenizer.convert_tokens_to_ids("<video>")] * 8]
    return head + ids_of(behind), [-100] * len(head) + labels


def encoded(tokenizer, folder, instruction: str, pairs: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    tiny = tiny_processor()
    processor = VideoChat2Processor(
        tiny.image_processor, tokenizer, tiny.qformer_tokenizer, tiny.video_processor, num_image_tokens=8
    )
    messages = [{"role": "system", "content": [{"type": "text", "text": instruction}]}] if instruction else []
    for number, (question, answer) in enumerate(pairs):
        content = [{"type": "video"}] * (number == 0) + [{"type": "text", "text": question}] * bool(question)
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
    video = write_video(folder / "v.mp4", 4, size=(32, 32))
    return ConversationEncoder(processor, num_frames=4)({"messages": messages, "videos": [str(video)], "images": []})


@pytest.mark.parametrize(("instruction", "pairs"), CONVERSATIONS)
def test_tokens_and_targets_are_the_original_s(instruction, pairs, tmp_path):
    tokenizer = mistral_like("prepend")
    ids, labels = of_the_original(tokenizer, instruction, pairs)
    ours = encoded(tokenizer, tmp_path, instruction, pairs)
    assert tokenizer.convert_ids_to_tokens(ours["input_ids"]) == tokenizer.convert_ids_to_tokens(ids)
    assert ours["labels"].tolist() == labels


@pytest.mark.parametrize("scheme", ["prepend", "first"])
@pytest.mark.parametrize(("instruction", "pairs"), CONVERSATIONS)
def test_targets_are_the_answers(scheme, instruction, pairs, tmp_path):
    tokenizer = mistral_like(scheme)
    row = encoded(tokenizer, tmp_path, instruction, pairs)
    targets = row["labels"][row["labels"] != -100]
    assert tokenizer.decode(targets).split() == " ".join(f"{answer} </s>" for _, answer in pairs).split()
    assert targets[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("scheme", ["prepend", "first"])
def test_a_tokenizer_of_another_make_is_told(scheme, tmp_path, caplog):
    mistral_like(scheme).save_pretrained(tmp_path / "mistral")
    tiny_qformer_tokenizer().save_pretrained(tmp_path / "bert")
    load_processor(tmp_path / "mistral", tmp_path / "bert")
    assert ("text behind a visual token becomes" in caplog.text) == (scheme == "first")
