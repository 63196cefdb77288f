"""The shipped experiments. `preset("350m")` and so on; the gin and configs recipes give the same.

The three CM3Leon sizes follow tables 3 of the paper (peak rate, warmup, tokens per step, tokens
seen); what the paper does not state keeps the defaults of `config`, which say where they are from.
`with_run` gives one of them what is a run's and not a model's, as gin/runs/ does.
"""

from dataclasses import replace
from typing import Any

from cm3leon_jax import config
from cm3leon_jax.config import (
    Data,
    Decode,
    Experiment,
    ImageTokenizer,
    Mesh,
    Model,
    Objective,
    Optimizer,
    Retrieval,
    Retriever,
    Train,
    Upscaler,
)

ROW = 4096
BATCH = 2048  # rows: 8.4M tokens, the paper's 8M rounded to a power of two


def _cm3leon(model: Model, learning_rate: float, tokens: float) -> Experiment:
    return Experiment(
        model=model,
        image_tokenizer=ImageTokenizer(perceptual=1.0, adversarial=0.5),
        upscaler=Upscaler(perceptual=1.0, adversarial=0.1),
        # The public code's two; with the paper's three, four pairs take 4,141 places of 4,096.
        retrieval=Retrieval(least=2, most=2),
        decode=Decode(documents=2),
        optimizer=Optimizer(learning_rate=learning_rate, warmup_steps=1500),
        train=Train(steps=round(tokens / (BATCH * ROW)), batch=BATCH),
    )


def _chameleon(model: Model, learning_rate: float, tokens: float) -> Experiment:
    """Chameleon (arXiv 2405.09818, section 2): no CM3 spans, z-loss, 512-pixel images."""
    shape = replace(
        model,
        norm="rmsnorm",
        norm_affine=True,
        activation="swiglu",
        positions="rotary",
        qk_norm=True,
        tie_embeddings=False,
        init_residual="scaled",
    )
    experiment = _cm3leon(shape, learning_rate, tokens)
    return replace(
        experiment,
        image_tokenizer=replace(experiment.image_tokenizer, size=512, multipliers=(1, 1, 2, 2, 4)),
        retrieval=Retrieval(),
        objective=Objective(rate=0.0, z_loss=1e-5),
        optimizer=replace(experiment.optimizer, warmup_steps=4000, beta2=0.95, epsilon=1e-5),
        decode=Decode(temperature=0.7, guidance=3.0, repetition_penalty=1.2),
    )


def _tiny() -> Experiment:
    """The quickstart on scenes: minutes on two CPU cores."""
    return Experiment(
        model=Model(
            layers=4,
            width=128,
            heads=4,
            mlp=512,
            context=256,
            specials=64,
            sentinels=32,
            text_pieces=384,
            image_codes=1024,
            image_tokens=16,
            activation="relu",  # on CPU a step with gelu takes 1.9 times as long
            code_positions=True,
            code_features=12,
            init_std=0.08,  # 1 / sqrt(width); at the paper's 0.006 a model this narrow learns late
            position_std=0.08,
            dtype="float32",
            remat="none",
            loss_chunk=256,  # no shorter than a row: nothing is computed twice
        ),
        image_tokenizer=ImageTokenizer(
            size=32,
            encoder="patch",
            patch=8,
            channels=64,
            multipliers=(1,),
            blocks=1,
            groups=8,
            latent=64,
            codes=1024,
            width=12,
            normalize=True,
            quantizer="ema",
            bypass=0.2,
            squared=1.0,
            absolute=0.2,
            optimizer=Optimizer(
                learning_rate=3e-3,
                warmup_steps=50,
                schedule="cosine",
                end_fraction=0.01,
                beta2=0.95,
                weight_decay=0.01,
            ),
            train=Train(steps=2400, batch=32, log_every=20, sample_every=600, save_every=200),
        ),
        retriever=Retriever(
            size=32,
            patch=8,  # 17 tokens: patches of 4 find as much in twice the time
            width=64,
            layers=2,
            heads=4,
            text_width=64,
            text_layers=1,
            text_heads=4,
            text_tokens=32,
            embedding=64,
            dtype="float32",
            optimizer=Optimizer(
                learning_rate=2e-3,
                warmup_steps=50,
                schedule="cosine",
                end_fraction=0.01,
                weight_decay=0.1,
            ),
            train=Train(steps=300, batch=128, log_every=20, sample_every=100, save_every=100),
        ),
        upscaler=Upscaler(
            channels=24,
            growth=12,
            blocks=2,
            crop=64,
            sample=5000,
            degradation="none",
            optimizer=Optimizer(
                learning_rate=2e-3,
                warmup_steps=20,
                schedule="cosine",
                end_fraction=0.01,
                beta2=0.99,
                weight_decay=0.0,
            ),
            train=Train(steps=800, batch=8, log_every=20, sample_every=200, save_every=100),
        ),
        data=Data(
            source="scenes",
            tasks=(
                *("edit", "edges", "segmentation", "segmentation_of", "boxes", "grounded"),
                *("write", "short", "long", "question", "choice", "infill"),
            ),
            count=60_000,
            sample=30_000,
            row_length=192,
        ),
        # Of 60,000 scenes many are alike: with the paper's .9 four in ten would stand alone.
        retrieval=Retrieval(most=2, alone=0.5, candidates=32, max_score=0.97, max_similarity=0.97),
        objective=Objective(rate=1.0, max_spans=2, whole_segment=0.7),
        optimizer=Optimizer(
            learning_rate=2e-3,
            warmup_steps=100,
            schedule="cosine",
            end_fraction=0.02,
            beta2=0.95,
            weight_decay=0.01,
            matrices="muon",  # after 2,000 steps draws all scenes right, with Adam .83 of them
        ),
        train=Train(steps=1000, batch=6, log_every=20, sample_every=500, save_every=200),
        mesh=Mesh(data=1, fsdp=1),  # one device, however many there are
        decode=Decode(
            temperature=0.2,
            top_p=1.0,
            guidance=1.0,
            guidance_image=1.0,
            guidance_text=1.0,
            text_temperature=0.0,
            text_tokens=112,
        ),
    )


def _scenes_full() -> Experiment:
    """The quickstart on scenes with time: four times as many steps and documents."""
    tiny = _tiny()
    return replace(
        tiny,
        image_tokenizer=replace(
            tiny.image_tokenizer,
            train=replace(tiny.image_tokenizer.train, steps=6000, sample_every=1000),
        ),
        data=replace(tiny.data, count=240_000),
        train=replace(tiny.train, steps=4000, sample_every=1000, save_every=1000),
    )


def _tiny_emoji() -> Experiment:
    """The quickstart on emoji: 64 codes per picture, a wider model, longer rows."""
    tiny = _tiny()
    return replace(
        tiny,
        model=replace(tiny.model, image_tokens=64, text_pieces=1024, context=320),
        image_tokenizer=replace(
            tiny.image_tokenizer,
            patch=4,
            channels=48,
            latent=48,
            train=replace(tiny.image_tokenizer.train, steps=2000, batch=24, sample_every=500),
        ),
        retriever=replace(tiny.retriever, train=replace(tiny.retriever.train, steps=400)),
        data=replace(tiny.data, source="emoji", tasks=("edit", "short"), row_length=256),
        # Behind others a document fills a row that holds three. A sibling is no copy.
        retrieval=Retrieval(most=2, alone=0.8, max_score=0.97, max_similarity=0.97),
        objective=replace(tiny.objective, rate=1.0, whole_segment=0.8),
        optimizer=replace(tiny.optimizer, learning_rate=3e-3),
        train=replace(tiny.train, steps=900, batch=5),
        # A row of 256 places in front of an answer leaves it 64 of the context.
        decode=replace(tiny.decode, temperature=0.3, guidance=1.5, text_tokens=64),
    )


def _tiny_folder() -> Experiment:
    """The quickstart on a folder: 64-pixel pictures in 64 codes."""
    emoji = _tiny_emoji()
    return replace(
        emoji,
        image_tokenizer=replace(emoji.image_tokenizer, size=64, patch=8),
        retriever=replace(emoji.retriever, size=64, patch=16, text_tokens=64),
        data=replace(emoji.data, source="folder", tasks=()),
        retrieval=Retrieval(most=2, alone=0.3),
        train=replace(emoji.train, steps=3600),
    )


PRESETS = {
    "tiny": _tiny(),
    "scenes_full": _scenes_full(),
    "tiny_emoji": _tiny_emoji(),
    "tiny_folder": _tiny_folder(),
    "350m": _cm3leon(Model(layers=24, width=1024, heads=16, mlp=4096), 6e-4, 1.4e12),
    "760m": _cm3leon(Model(layers=24, width=1536, heads=16, mlp=6144), 5e-4, 1.9e12),
    "7b": _cm3leon(Model(layers=32, width=4096, heads=32, mlp=16384), 1.2e-4, 2.4e12),
    "chameleon_7b": _chameleon(Model(layers=32, width=4096, heads=32, mlp=11008), 1e-4, 9.2e12),
    "chameleon_30b": _chameleon(
        Model(layers=48, width=8192, heads=64, kv_heads=8, mlp=22016, norm_placement="after"),
        1e-4,
        9.2e12,
    ),
}


# The CM3 objective on every token of rows of 4,096, over what a model's file says.
_CM3: dict[str, Any] = {
    "data.count": 0,
    "data.row_length": ROW,
    "retrieval.alone": 0.0,
    "objective.rate": 1.0,
    "objective.max_spans": 16,
    "objective.whole_segment": 0.5,
    "objective.retrieved_weight": 1.0,
    "objective.sentinel_weight": 1.0,
    "optimizer.moment_dtype": "bfloat16",
    "train.log_every": 20,
    "train.save_every": 500,
    "train.keep": 3,
}
RUNS: dict[str, dict[str, Any]] = {
    "pretrain": _CM3
    | {
        "retrieval.least": 2,
        "retrieval.most": 2,
        "optimizer.warmup_steps": 1500,
        "train.batch": BATCH,
        "train.sample_every": 5000,
        "decode.documents": 2,
    },
    "sft": _CM3  # table 4 of the paper
    | {
        "retrieval.least": 0,
        "retrieval.most": 0,
        "optimizer.learning_rate": 5e-5,
        "optimizer.warmup_steps": 150,
        "train.batch": 512,
        "train.steps": round(30e9 / (512 * ROW)),
        "train.sample_every": 500,
        "decode.documents": 0,
    },
}


def with_run(experiment: Experiment, run: str) -> Experiment:
    """The experiment as "pretrain" or "sft" runs it."""
    return config.replace(experiment, RUNS[run])


# Of the documents that the quickstart is tuned on, by source; other tasks have 1. To find the
# object that a question or an edit speaks of takes many times as many as all else does, and
# paragraphs, whose every sentence has to find one, help both.
SHARES: dict[str, dict[str, int]] = {
    "scenes": {
        **{"plain": 3, "edit": 18, "grounded": 2, "write": 2, "short": 2},
        **{"long": 8, "question": 32, "choice": 4, "infill": 4},
    },
    "emoji": {"plain": 6, "edit": 2, "short": 3},
}


def tuned(experiment: Experiment) -> Experiment:
    """The experiment's instruction tuning, the last stage of the quickstart, on `data.tasks`.

    Unlike the paper's it counts answers alone: of what the tasks ask, pictures above all, a model
    this small learns nothing that it needs.
    """
    changes = {
        "retrieval.alone": 0.9,
        "objective.answer_last": 1.0,
        "objective.answer_only": True,
        "objective.answer_length": 0.5,
        "train.steps": 5 * experiment.train.steps,
    }
    return config.replace(experiment, changes)


def fast(experiment: Experiment) -> Experiment:
    """A third of the experiment, to see whether everything works: less data, fewer steps."""
    fewer = {
        "data.count": -(-experiment.data.count // 3),
        "data.sample": -(-experiment.data.sample // 3),
        "image_tokenizer.train.steps": -(-experiment.image_tokenizer.train.steps // 2),
        "retriever.train.steps": -(-experiment.retriever.train.steps // 2),
        "train.steps": -(-experiment.train.steps // 3),
    }
    return config.replace(experiment, fewer)


def preset(name: str) -> Experiment:
    """A shipped experiment by name."""
    if name not in PRESETS:
        raise ValueError(f"preset={name!r}: use one of {', '.join(PRESETS)}")
    return PRESETS[name]


def name_for_source(source: str) -> str:
    """The quickstart's preset for a data source: scenes, emoji or a folder."""
    return {"scenes": "tiny", "emoji": "tiny_emoji"}.get(source, "tiny_folder")


def for_source(source: str) -> Experiment:
    """The quickstart's experiment for a data source."""
    experiment = preset(name_for_source(source))
    return replace(experiment, data=replace(experiment.data, source=source))
