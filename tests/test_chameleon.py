"""Chameleon directories: transformers' logits and codes, bit for bit both ways, end to end."""

import contextlib
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chameleon_directory import write_directory
from conftest import CHAMELEON, SMALL, make_text
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cm3leon_jax as cm3
from cm3leon_jax import checkpoint, cli, config
from cm3leon_jax.data.networks import open_transformer
from cm3leon_jax.interop import vq
from cm3leon_jax.interop.chameleon_form import write_form
from cm3leon_jax.interop.convert import convert
from cm3leon_jax.interop.shards import Shards, write_file
from cm3leon_jax.interop.streamed import Writer
from cm3leon_jax.models import transformer
from cm3leon_jax.models.transformer import Transformer
from cm3leon_jax.models.vqgan import VQGAN
from cm3leon_jax.sharding import make_mesh
from cm3leon_jax.tokens.vocabulary import BREAK

torch = pytest.importorskip("torch", reason="transformers has the original")
pytest.importorskip("transformers", reason="transformers has the original")
FAR = 2e-5  # largest difference of a logit; measured: 8e-6 among logits up to 7


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Their model, its directory and our bundle: several shards, both unlike defaults."""
    home = tmp_path_factory.mktemp("chameleon")
    source = home / "theirs"
    model = write_directory(source, kv_heads=2, swin_norm=True, max_shard_size="60KB")
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: chameleon\n---\n")
    assert convert(source, home / "ours") == "chameleon"
    return model, source, home / "ours"


@pytest.fixture(scope="module")
def loaded(made):
    """Our generator, and what loading it said."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return cm3.load(made[2]), said.getvalue()


def read_order(bundle):
    """Their id of each of ours, of a bundle that was converted."""
    return np.array(json.loads((bundle / "source.json").read_text())["theirs"])


@jax.jit
def _run(model, tokens):
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = model(tokens, jnp.ones_like(tokens), places, jnp.full_like(tokens, -1))
    return hidden @ model.head_table().T


def our_logits(bundle, ids):
    """Float32 logits [B T V] at their ids, in their order; ours is theirs without source.json."""
    c = config.replace(checkpoint.read_experiment(bundle), {"model.dtype": "float32"})
    mesh = make_mesh(config.Mesh(data=1, fsdp=1, tensor=1), jax.local_devices())
    model = open_transformer(c, bundle / "transformer", mesh)
    if not (bundle / "source.json").exists():
        return np.asarray(_run(model, ids))
    back = np.argsort(read_order(bundle))
    return np.asarray(_run(model, back[ids]))[..., back]


def their_logits(model, ids):
    """Without the mask over image ids, which its forward pass lays on."""
    with torch.no_grad():
        hidden = model.model(input_ids=torch.from_numpy(ids)).last_hidden_state
        return (hidden @ model.lm_head.weight.T).numpy()


def draw_ids(model):
    return np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 20))


def test_logits_are_those_of_transformers_with_norms_after_and_grouped_heads(made):
    model, _, bundle = made
    ids = draw_ids(model)
    np.testing.assert_allclose(our_logits(bundle, ids), their_logits(model, ids), atol=FAR)


@settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    heads=st.sampled_from([2, 4, 6]),
    layers=st.integers(1, 3),
    grouped=st.booleans(),
    after=st.booleans(),
)
def test_logits_are_those_of_transformers_in_any_shape(
    tmp_path_factory, heads, layers, grouped, after
):
    home = tmp_path_factory.mktemp("shape")
    kv_heads = heads // 2 if grouped else heads
    model = write_directory(home / "theirs", heads, kv_heads, layers, after)
    convert(home / "theirs", home / "ours")
    ids = draw_ids(model)
    np.testing.assert_allclose(our_logits(home / "ours", ids), their_logits(model, ids), atol=FAR)


def test_images_have_the_codes_of_transformers(made, loaded):
    model, _, bundle = made
    g, _ = loaded
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        found = model.model.get_image_tokens(torch.from_numpy(pictures.transpose(0, 3, 1, 2)))
    order = read_order(bundle)
    codes = np.asarray(g.image_tokenizer.encode(pictures)).reshape(2, -1)
    np.testing.assert_array_equal(order[g.vocabulary.image_ids(codes)], found.numpy())


def test_a_converted_model_draws_pictures_by_guidance_and_nothing_else(loaded):
    g, said = loaded
    assert "licence 'chameleon': research only" in said
    assert said.count("\n") == 1
    one = g.images("hello <s>", n=2, guidance=3.0, seed=1)
    assert [picture.size for picture in one] == [(8, 8)] * 2
    assert [p.tobytes() for p in one] == [
        p.tobytes() for p in g.images("hello <s>", n=2, guidance=3.0, seed=1)
    ]
    with pytest.raises(ValueError, match=r"model\.documents='chameleon': draws pictures only"):
        g.caption(one[0])


def test_prompts_and_texts_are_put_in_chameleons_ids(made):
    from tokenizers import Tokenizer

    from cm3leon_jax.decoding.prompts import image_streams
    from cm3leon_jax.tokens.document import Text
    from cm3leon_jax.tokens.text import TextTokenizer
    from cm3leon_jax.tokens.vocabulary import Vocabulary

    model, source, bundle = made
    names, text = model.config.vocabulary_map, TextTokenizer.load(bundle / "text.model")
    order = read_order(bundle)
    v = Vocabulary.of(checkpoint.read_experiment(bundle).model)
    full, empty = image_streams(Text(text.encode("hello")), v)
    theirs = Tokenizer.from_file(str(source / "tokenizer.json")).encode("hello").ids
    opening, begin = names["<s>"], names["<racm3:break>"]
    assert order[full].tolist() == [opening, *theirs, begin]
    assert order[empty].tolist() == [opening, begin]
    assert order[BREAK] == begin
    assert sorted(order) == list(range(model.config.vocab_size))
    typed = "<s> ünï <racm3:break>"  # marks that a user types are text
    assert text.decode(text.encode(typed)) == typed
    assert opening not in order[v.text_ids(text.encode(typed))]


def test_export_gives_transformers_every_bit_and_converts_back_to_every_bit(made, tmp_path):
    from transformers import ChameleonForConditionalGeneration

    model, _, bundle = made
    assert convert(bundle, tmp_path / "back") == "bundle"
    again = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "back").state_dict()
    wanted = model.state_dict()
    assert again.keys() == wanted.keys()
    assert all(torch.equal(again[name], wanted[name]) for name in wanted)
    convert(tmp_path / "back", tmp_path / "twice")
    assert same_networks(bundle, tmp_path / "twice")
    assert (bundle / "text.model").read_bytes() == (tmp_path / "twice/text.model").read_bytes()


def same_networks(first, second):
    from orbax.checkpoint import v1 as orbax

    parts = [(f / part) for part in ("transformer", "image_tokenizer") for f in (first, second)]
    trees = [orbax.load(part) for part in parts]
    same = lambda a, b: np.array_equal(a, b) and a.dtype == b.dtype  # noqa: E731
    return all(jax.tree.all(jax.tree.map(same, *trees[i : i + 2])) for i in (0, 2))


def test_norms_of_model_parallel_ranks_are_those_of_their_heads(made, tmp_path):
    _, source, bundle = made
    shards = Shards.open(source)
    tensors = dict(shards.stream())
    norms = [name for name in tensors if "q_norm" in name or "k_norm" in name]

    def write(folder, tensors, groups):
        _change(rewrite(copy(source, folder), tensors), model_parallel_size=groups)
        return folder

    ranks = {name: tensors[name][:1] for name in norms}  # one rank had all heads
    spread = {name: np.repeat(ranks[name], len(tensors[name]), axis=0) for name in norms}
    convert(write(tmp_path / "ranks", tensors | ranks, 1), tmp_path / "a")
    convert(write(tmp_path / "heads", tensors | spread, 1), tmp_path / "b")
    assert same_networks(tmp_path / "a", tmp_path / "b")
    assert not same_networks(tmp_path / "a", bundle)


def test_an_array_of_zeros_is_read_back(tmp_path):
    from orbax.checkpoint import v1 as ocp

    Writer(tmp_path / "network", {"bias": ((3,), np.dtype(np.float32))}).write(
        "bias", np.zeros(3, np.float32)
    )
    assert ocp.load(tmp_path / "network")["bias"].tolist() == [0, 0, 0]


def test_the_card_has_checksums_and_licence_and_loading_says_research_only(made, capsys):
    import hashlib

    _, source, bundle = made
    card = (bundle / "card.md").read_text()
    for path in source.glob("*.safetensors"):
        assert f"| {path.name} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |" in card
    assert "chameleon" in card
    assert "Intended use is what that licence allows" in card
    cm3.load(bundle)
    assert "licence 'chameleon': research only" in capsys.readouterr().err


def test_weights_load_as_stored_and_are_not_kept_twice(made, tmp_path, monkeypatch):
    from ml_dtypes import bfloat16

    _, source, bundle = made
    tensors = {name: x.astype(bfloat16) for name, x in Shards.open(source).stream()}
    rewrite(copy(source, tmp_path / "theirs"), tensors)
    convert(tmp_path / "theirs", tmp_path / "ours")
    c = checkpoint.read_experiment(bundle)
    mesh = make_mesh(config.Mesh(data=1, fsdp=1, tensor=1), jax.local_devices())
    for folder, dtype in ((bundle, np.float32), (tmp_path / "ours", bfloat16)):
        stored = open_transformer(c, folder / "transformer", mesh, as_stored=True)
        assert {x.dtype for x in jax.tree.leaves(stored)} == {np.dtype(dtype)}
    monkeypatch.setattr(transformer, "APART", 0)
    weights = [weight.get_value() for _, weight, _ in stored.layers.weights()]
    decoding = stored.for_decoding(donate=True)
    assert {x.dtype for x in jax.tree.leaves(decoding)} == {np.dtype(bfloat16)}
    assert all(x.is_deleted() for x in weights)  # each layer has its own now
    assert not any(x.is_deleted() for x in jax.tree.leaves(decoding))


def test_an_image_tokenizer_among_the_shards_is_read_there_as_anole_has_it(made, tmp_path):
    _, source, bundle = made
    tensors = dict(Shards.open(source).stream())
    whole = Shards.open(source / "vqgan.safetensors").stream()
    tensors |= {f"model.vqmodel.{name}": x for name, x in whole}
    theirs = rewrite(copy(source, tmp_path / "theirs"), tensors)
    (theirs / "vqgan.safetensors").unlink()
    convert(theirs, tmp_path / "ours")
    assert same_networks(bundle, tmp_path / "ours")


OWN = SMALL | CHAMELEON
OWN |= {"image_tokenizer.patch": 1, "image_tokenizer.multipliers": [1, 1], "model.context": 96}
OWN |= {"image_tokenizer.groups": 32, "image_tokenizer.channels": 32, "model.image_tokens": 16}


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_of_ours_goes_out_and_has_its_logits_in_transformers(tied, tmp_path):
    from transformers import ChameleonForConditionalGeneration

    c = config.replace(config.Experiment(), OWN | {"model.tie_embeddings": tied})
    bundle, rng = tmp_path / "ours", np.random.default_rng(0)
    checkpoint.write_experiment(bundle, c)
    make_text().save(bundle / "text.model")
    networks = {
        "transformer": lambda: Transformer(c.model, rngs=nnx.Rngs(0)),
        "image_tokenizer": lambda: VQGAN(c.image_tokenizer, rngs=nnx.Rngs(0)),
    }

    def draw(path, x):
        name = ".".join(checkpoint.names_of(path))
        spread = 0 if name in vq.OWN else 0.2  # what training alone needs stays behind
        return rng.normal(name.endswith(("scale", "credit")), spread, x.shape).astype(x.dtype)

    for name, build in networks.items():
        drawn = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(build))
        checkpoint.save_network(bundle / name, drawn)
    assert convert(bundle, tmp_path / "theirs") == "bundle"
    model = ChameleonForConditionalGeneration.from_pretrained(tmp_path / "theirs").eval()
    ids = draw_ids(model)
    np.testing.assert_allclose(our_logits(bundle, ids), their_logits(model, ids), atol=FAR)
    convert(tmp_path / "theirs", tmp_path / "again")
    assert same_networks(bundle, tmp_path / "again")
    assert checkpoint.read_experiment(tmp_path / "again") == c


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.norm": "layernorm"}, "model.norm='layernorm': only 'rmsnorm' goes into"),
        ({"model.code_positions": True}, "model.code_positions=True: only False goes into"),
        ({"image_tokenizer.normalize": True}, "image_tokenizer.normalize=True: only False"),
        ({"image_tokenizer.quantizer": "gumbel"}, "image_tokenizer.quantizer='gumbel': its layer"),
    ],
)
def test_a_model_of_another_form_does_not_go_out(changes, said):
    c = config.replace(config.Experiment(), OWN | changes)
    with pytest.raises(ValueError, match=f"^{said}"):
        write_form(c, None, "float32")


def copy(source, target):
    shutil.copytree(source, target)
    return target


def rewrite(folder, tensors):
    """Puts these tensors, in one file, in the place of a directory's shards."""
    for path in folder.glob("model*"):
        path.unlink()
    forms = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    write_file(folder / "model.safetensors", forms, tensors.__getitem__)
    return folder


def _edit(folder, change):
    tensors = dict(Shards.open(folder).stream())
    change(tensors)
    rewrite(folder, tensors)


def _spoil_image_tokenizer(folder):
    path = folder / "vqgan.safetensors"
    tensors = dict(Shards.open(path).stream())
    tensors["encoder.conv_in.bias"] = tensors["encoder.conv_in.bias"] + 1
    forms = {name: (array.shape, array.dtype) for name, array in tensors.items()}
    write_file(path, forms, tensors.__getitem__)


def _truncate(folder):
    path = sorted(folder.glob("model-*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-3])


def _lose_shard(folder):
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def _change(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_truncate, "it is cut off"),
        (_lose_shard, "No such file"),
        (lambda f: _change(f, model_type="llama"), "is of no layout that is read (llama)"),
        (lambda f: _change(f, hidden_act="gelu"), "hidden_act='gelu': only 'silu' is read"),
        (lambda f: _change(f, vocab_size=300), "vocab_size=300: must exceed the highest id"),
        (lambda f: _change(f, vocab_size=360), "wanted (360, 32) by vocab_size, hidden_size"),
        (lambda f: _change(f, intermediate_size=50), "by intermediate_size, hidden_size"),
        (lambda f: _change(f, num_hidden_layers=1), "is left over"),
        (lambda f: _change(f, num_hidden_layers=3), "is missing, wanted of shape"),
        (
            lambda f: _edit(f, lambda t: t.pop("model.norm.weight")),
            "tensor model.norm.weight: is missing, wanted of shape (32,) by hidden_size",
        ),
        (
            lambda f: _edit(f, lambda t: t.update(more=np.zeros(2))),
            "tensor more: of shape (2,) is left over; the config describes a model without it",
        ),
        (
            lambda f: _edit(f, lambda t: t.update({"lm_head.weight": np.zeros((9, 32))})),
            "tensor lm_head.weight: has shape (9, 32), wanted",
        ),
        (_spoil_image_tokenizer, "is another one in vqgan.safetensors"),  # when half is written
        (lambda f: (f / "vqgan.safetensors").unlink(), "its decoder is neither among the shards"),
        (lambda f: (f / "tokenizer.json").unlink(), "holds none of tokenizer.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_left(made, tmp_path, spoil, said, capsys):
    source = copy(made[1], tmp_path / "theirs")
    spoil(source)
    assert cli.main(["convert", str(source), str(tmp_path / "ours")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
