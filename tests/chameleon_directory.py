"""A tiny random Chameleon as transformers saves it, for tests that have torch."""

import numpy as np

from cm3leon_jax.config import ImageTokenizer
from cm3leon_jax.interop import vq
from cm3leon_jax.interop.chameleon_ids import write_code
from cm3leon_jax.interop.shards import write_file

CODES, CONTEXT = 64, 48
VQ = {"embed_dim": 6, "num_embeddings": CODES, "latent_channels": 8, "resolution": 8}
VQ |= {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}


def write_directory(folder, heads=4, kv_heads=4, layers=2, swin_norm=False, **saved):
    """Writes tokenizer.json, config.json, shards and vqgan.safetensors; returns their model."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration

    torch.manual_seed(0)
    order = np.random.default_rng(1).permutation(CODES)
    names = ["<s>", "<pad>", "</s>", "<unk>", *map(write_code, order), "<eoss>", "<racm3:break>"]
    names += [f"<reserved{id:05}>" for id in range(20)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: id for id, name in enumerate([*names, *letters, "he", "ll", "hell"])}
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(n, special=True, normalized=False) for n in names])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    mapped = dict(vocabulary)
    mapped["<image>"] = mapped.pop("<reserved00005>")  # as the published conversion does
    form = ChameleonConfig(
        vocab_size=len(vocabulary) + 5,
        hidden_size=8 * heads,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=CONTEXT,
        swin_norm=swin_norm,
        vocabulary_map=mapped,
        vq_config=VQ,
    )
    model = ChameleonForConditionalGeneration(form).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.3)
    model.save_pretrained(folder, **saved)
    write_decoder(folder, model)
    return model


def write_decoder(folder, model):
    """vqgan.safetensors: their image tokenizer with a random decoder, which transformers lacks."""
    c = ImageTokenizer(
        size=8, channels=32, multipliers=(1, 1), blocks=1, latent=8, codes=CODES, width=6
    )
    rng, state, whole = np.random.default_rng(0), model.model.vqmodel.state_dict(), {}
    for row in vq.rows(vq.TAMING, c):
        random = rng.normal(0, 0.1, row.their_shape).astype(np.float32)
        whole[row.theirs] = state[row.theirs].numpy() if row.theirs in state else random
    forms = {name: (array.shape, array.dtype) for name, array in whole.items()}
    write_file(folder / "vqgan.safetensors", forms, whole.__getitem__)
