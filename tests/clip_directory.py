"""A tiny random CLIP as transformers saves it, for tests that have torch."""

from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
VOCABULARY = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "re", "red</w>", "ca", "cat</w>"]
MERGES = [("r", "e"), ("re", "d</w>"), ("c", "a"), ("ca", "t</w>")]
# Activation; size, patch, width, layers, heads of pictures; width, layers, heads of texts; vectors
B32 = ("quick_gelu", (8, 4, 16, 1, 2), (16, 1, 2), 12)


def write_clip(folder: Path, shape=B32):
    """A random network of transformers and its tokenizer, as published ones are; returns both."""
    import torch
    import transformers

    activation, vision, text, embedding = shape
    names = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    pieces = len(VOCABULARY)

    def tower(sizes, names):
        named = dict(zip(names, sizes))
        return named | {"intermediate_size": 4 * named["hidden_size"], "hidden_act": activation}

    ids = {"vocab_size": pieces + 2, "bos_token_id": pieces, "eos_token_id": pieces + 1}
    torch.manual_seed(0)
    c = transformers.CLIPConfig(
        vision_config=tower(vision, names),
        text_config=tower(text, names[2:]) | ids | {"pad_token_id": pieces + 1},
        projection_dim=embedding,
    )
    theirs = transformers.CLIPModel(c).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # biases are born 0, and would prove nothing
            parameter.normal_(std=0.3)
    theirs.save_pretrained(folder)
    ends = ("<|startoftext|>", "<|endoftext|>")
    vocabulary = {piece: i for i, piece in enumerate((*VOCABULARY, *ends))}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=MERGES)
    tokenizer.save_pretrained(folder)
    return theirs, tokenizer
