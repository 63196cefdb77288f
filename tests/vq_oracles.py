"""Image tokenizers of others with weights drawn by name: `python tests/vq_oracles.py VQ_MODEL.PY`.

Writes tests/golden/vq.npz: codes and pixels of diffusers' VQModel, of taming-transformers' inner
modules (VQGAN and Gumbel) and of LlamaGen's `tokenizer/tokenizer_image/vq_model.py`, whose path is
the argument. Made with diffusers 0.42.1, taming-transformers-rom1504 0.0.6 and torch 2.13 on a CPU.
Tests draw the same weights into a safetensors file (`draw`) and import neither library.
"""

import sys
import zlib
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("golden") / "vq.npz"
SIDE, CODES, LATENT, WIDTH = 16, 40, 8, 6
DIFFUSERS = {
    "_class_name": "VQModel",
    "block_out_channels": [32, 64],
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    "layers_per_block": 1,
    "latent_channels": LATENT,
    "sample_size": SIDE,
    "num_vq_embeddings": CODES,
    "norm_num_groups": 16,
    "vq_embed_dim": WIDTH,
}


def draw(name, shape):
    """Normal numbers that follow from a tensor's name alone; norms stand around 1."""
    numbers = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name:
        return (0.2 * numbers + name.endswith("weight")).astype(np.float32)
    spread = 0.02 if len(shape) == 1 else 0.5 if "embed" in name else np.prod(shape[1:]) ** -0.5
    return (spread * numbers).astype(np.float32)


def pictures():
    """[2 SIDE SIDE 3] in [-1, 1]: smooth, so that codes differ."""
    rng = np.random.default_rng(0)
    return np.tanh(rng.normal(0, 0.7, (2, SIDE, SIDE, 3))).astype(np.float32)


def main(llamagen):
    import torch
    from diffusers import VQModel
    from taming.modules.diffusionmodules.model import Decoder, Encoder
    from taming.modules.vqvae.quantize import GumbelQuantize, VectorQuantizer2

    sys.path.insert(0, str(Path(llamagen).parent))
    import vq_model as theirs

    def taming(quantize):
        form = {"ch": 32, "out_ch": 3, "ch_mult": (1, 2), "num_res_blocks": 1}
        form |= {"attn_resolutions": [8], "in_channels": 3, "resolution": SIDE}
        form |= {"z_channels": LATENT, "double_z": False}
        made = torch.nn.Module()
        made.encoder, made.decoder, made.quantize = Encoder(**form), Decoder(**form), quantize
        made.quant_conv = torch.nn.Conv2d(LATENT, WIDTH, 1)
        made.post_quant_conv = torch.nn.Conv2d(WIDTH, LATENT, 1)
        return made

    form = theirs.ModelArgs(
        CODES, WIDTH, encoder_ch_mult=[1, 2], decoder_ch_mult=[1, 2], z_channels=LATENT
    )
    llama = theirs.VQModel(form)
    llama.encoder = theirs.Encoder(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=LATENT)
    llama.decoder = theirs.Decoder(ch=32, ch_mult=(1, 2), num_res_blocks=1, z_channels=LATENT)
    diffusers = VQModel(**{k: v for k, v in DIFFUSERS.items() if k[0] != "_"})
    vq, gumbel = VectorQuantizer2(CODES, WIDTH, beta=0.25), GumbelQuantize(WIDTH, WIDTH, CODES)
    models = {
        "diffusers": (diffusers, lambda m, h: m.quantize(h)[2][2]),
        "taming": (taming(vq), lambda m, h: m.quantize(h)[2][2]),
        "gumbel": (taming(gumbel), lambda m, h: m.quantize.proj(h).argmax(1)),
        "llamagen": (llama, lambda m, h: m.quantize(h)[2][2]),
    }
    found, x = {}, torch.from_numpy(pictures().transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        for key, (model, quantize) in models.items():
            model.eval()
            for name, value in model.state_dict().items():
                value.copy_(torch.from_numpy(draw(name, tuple(value.shape))))
            codes = quantize(model, model.quant_conv(model.encoder(x))).reshape(2, 8, 8)
            table = model.quantize.embed if key == "gumbel" else model.quantize.embedding
            vectors = table(codes)
            if key == "llamagen":
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            pixels = model.decoder(model.post_quant_conv(vectors.permute(0, 3, 1, 2)))
            found[f"{key}_codes"] = codes.numpy().astype(np.int32)
            found[f"{key}_pixels"] = pixels.numpy().transpose(0, 2, 3, 1)
            shapes = {name: list(v.shape) for name, v in model.state_dict().items()}
            found[f"{key}_names"] = np.array([f"{n} {s}" for n, s in shapes.items()])
            print(key, len(np.unique(found[f"{key}_codes"])), "codes", float(pixels.abs().max()))
    np.savez_compressed(GOLDEN, **found)


if __name__ == "__main__":
    main(sys.argv[1])
