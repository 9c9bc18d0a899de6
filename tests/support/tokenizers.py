"""Small tokenizers of every kind that the field uses, made on the spot."""

from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "memories are mixed by weights, aren't they",
    "a router picks memories",
] * 40


def sentencepiece_file(folder: Path, **options) -> Path:
    """A sentencepiece model of 330 pieces; ``options`` go to its trainer."""
    defaults = {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(folder / "small"),
        vocab_size=330,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        **(defaults | options),
    )
    return folder / "small.model"


def byte_level() -> tokenizers.Tokenizer:
    """As GPT-2: every byte is a letter."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    return _trained(backend, trainer)


def llama() -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral: unknown characters fall back to bytes, the first space is stripped."""
    backend = _with_byte_tokens()
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def metaspace() -> tokenizers.Tokenizer:
    """The same vocabulary in the library's newer words."""
    backend = _with_byte_tokens()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return backend


def unigram() -> tokenizers.Tokenizer:
    """As T5."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = {"special_tokens": ["<unk>", "</s>"], "unk_token": "<unk>"}
    return _trained(backend, trainers.UnigramTrainer(vocab_size=80, show_progress=False, **special))


def word_piece() -> tokenizers.Tokenizer:
    """As BERT."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    return _trained(backend, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special, show_progress=False))


JSON_KINDS = {
    "byte level": byte_level,
    "llama": llama,
    "metaspace": metaspace,
    "unigram": unigram,
    "word piece": word_piece,
}


def _with_byte_tokens() -> tokenizers.Tokenizer:
    special, data = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁", *"thequfoxa", "th", "the", "▁the", "▁q", "fo", "fox", "▁fox", "▁▁"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "q"), ("f", "o"), ("fo", "x"), ("▁", "fox"), ("▁", "▁")]
    vocabulary = {token: i for i, token in enumerate([*special, *data, *words])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    return backend


def _trained(backend: tokenizers.Tokenizer, trainer) -> tokenizers.Tokenizer:
    backend.train_from_iterator(SENTENCES, trainer)
    return backend
