"""The page: a tab for each thing that the bundle's model was trained for."""

import html
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.demo import answers
from cm3leon_jax.demo.canvas import make_canvas
from cm3leon_jax.demo.figures import show

Pictures = Sequence[NDArray[np.uint8]]


def build(generator: Generator) -> Any:
    """The `gr.Blocks` of the page."""
    import gradio as gr

    skills = answers.Skills(generator.experiment.data)
    texts, pictures = answers.examples(generator, 6)
    with gr.Blocks(title="CM3Leon", analytics_enabled=False) as page:
        gr.HTML(_head(generator), apply_default_css=False)
        with gr.Tab("Generate"):
            _generate(generator, texts)
        with gr.Tab("Edit"):
            _edit(generator, pictures, skills.has("edit"))
        if skills.has("boxes"):
            with gr.Tab("Boxes"):
                _boxes(generator)
        if skills.kinds:
            with gr.Tab("Structure"):
                _structure(generator, pictures, skills)
        with gr.Tab("Ask"):
            _ask(generator, pictures, skills)
        with gr.Tab("Interleave"):
            _interleave(generator, pictures)
    return page


def _head(generator: Generator) -> str:
    c = generator.experiment
    size, source = c.image_tokenizer.size, html.escape(c.data.source)
    return (
        f"<header><h1>CM3Leon</h1><p>{c.model.parameters:,} parameters, pictures of {size} x {size}"
        f" pixels, trained on {source}</p></header>"
    )


def _generate(generator: Generator, texts: Sequence[str]) -> None:
    import gradio as gr

    c = generator.experiment
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            prompt = gr.Textbox(label="Prompt", lines=2, value=texts[0] if texts else "")
            with gr.Row():
                n = _slider("Pictures", 1, 16, 4)
                guidance = _guidance(c.decode.guidance)
            most = c.retrieval.most if generator.memory else 0
            with gr.Row():
                had = min(c.decode.documents, most)
                documents = _slider("Documents", 0, most or 1, had, 1, most > 0)
                candidates = _slider("Candidates", 1, 32, 1, 1, generator.clip is not None)
            with gr.Row():
                seed = _seed()
                watched = gr.Checkbox(True, label="Show row by row", min_width=120)
            button = gr.Button("Draw", variant="primary")
            if texts:
                gr.Examples([[text] for text in texts[1:4]], [prompt], label="Other prompts")
        with gr.Column(scale=5, min_width=320):
            result = _results("The pictures appear here.")
    inputs = [prompt, n, candidates, guidance, documents, seed, watched]
    _answer([button.click, prompt.submit], answers.generate, generator, inputs, [result])


def _edit(generator: Generator, pictures: Pictures, follows: bool) -> None:
    import gradio as gr

    c = generator.experiment
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            canvas = make_canvas(c.image_tokenizer.size, "one", pictures)
            asked = "with a rectangle: what the whole shows; without: what to change"
            text = gr.Textbox(
                label="Caption or instruction" if follows else "Caption",
                info=asked if follows else "what the whole picture shows",
            )
            with gr.Row(visible=follows):
                by_image = _slider("Keep picture", 0, 10, c.decode.guidance_image, 0.1)
                by_text = _slider("Follow text", 0, 15, c.decode.guidance_text, 0.1)
            seed = _seed()
            button = gr.Button("Edit", variant="primary")
        with gr.Column(scale=5, min_width=320):
            result = _results("The picture before and after appears here.")
    inputs = [canvas, text, by_image, by_text, seed]
    _answer([button.click, text.submit], answers.edit, generator, inputs, [result])


def _boxes(generator: Generator) -> None:
    import gradio as gr

    c = generator.experiment
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            canvas = make_canvas(c.image_tokenizer.size, "named", None)
            caption = gr.Textbox(label="Caption")
            with gr.Row():
                guidance, seed = _guidance(c.decode.guidance), _seed()
            button = gr.Button("Draw", variant="primary")
        with gr.Column(scale=5, min_width=320):
            result = _results("The picture appears here, with and without the rectangles.")
    inputs = [canvas, caption, guidance, seed]
    _answer([button.click, caption.submit], answers.boxes, generator, inputs, [result])


def _structure(generator: Generator, pictures: Pictures, skills: answers.Skills) -> None:
    import gradio as gr

    c, kinds = generator.experiment, skills.kinds
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            canvas = make_canvas(c.image_tokenizer.size, "none", pictures)
            with gr.Row():
                kind = gr.Dropdown(kinds, value=kinds[0], label="Kind", min_width=120)
                sources = skills.sources(kinds[0])
                source = gr.Dropdown(sources, value=sources[0], label="Map", min_width=120)
            prompt = gr.Textbox(label="Prompt")
            with gr.Row():
                guidance, seed = _guidance(c.decode.guidance), _seed()
            button = gr.Button("Draw", variant="primary")
        with gr.Column(scale=5, min_width=320):
            result = _results("The map and the picture appear here.")

    def offer(kind: str) -> Any:
        found = skills.sources(kind)
        return gr.Dropdown(found, value=found[0])

    kind.change(offer, kind, source, api_visibility="private", show_progress="hidden")
    inputs = [canvas, source, kind, prompt, guidance, seed]
    _answer([button.click, prompt.submit], answers.structure, generator, inputs, [result])


def _ask(generator: Generator, pictures: Pictures, skills: answers.Skills) -> None:
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            canvas = make_canvas(generator.experiment.image_tokenizer.size, "none", pictures)
            way = gr.Radio(skills.ways, value=skills.ways[0], label="What to write")
            question = gr.Textbox(label="Question", visible=False)
            seed = _seed()
            button = gr.Button("Ask", variant="primary")
        with gr.Column(scale=5, min_width=320):
            result = _results("The answer appears here.")

    def turn(way: str) -> Any:
        return gr.Textbox(visible=answers.WAYS[way].asks)

    way.change(turn, way, question, api_visibility="private", show_progress="hidden")
    inputs = [canvas, way, question, seed]
    _answer([button.click, question.submit], answers.ask, generator, inputs, [result])


def _interleave(generator: Generator, pictures: Pictures) -> None:
    import gradio as gr

    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            text = gr.Textbox(label="Text", lines=2)
            canvas = make_canvas(generator.experiment.image_tokenizer.size, "none", pictures)
            with gr.Row():
                segments = _slider("Segments", 1, 8, 2)
                seed = _seed()
            with gr.Row():
                button = gr.Button("Go on", variant="primary", min_width=120)
                anew = gr.Button("Begin anew", min_width=120)
        with gr.Column(scale=5, min_width=320):
            empty = "The document appears here: what you add, and what the model writes behind it."
            result, document = _results(empty), gr.State(None)
    inputs = [document, text, canvas, segments, seed]
    _answer([button.click], answers.interleave, generator, inputs, [result, document]).success(
        lambda: ("", {"picture": None, "boxes": []}),
        None,
        [text, canvas],
        api_visibility="private",
        show_progress="hidden",
    )
    anew.click(
        lambda: (show([], empty), None),
        None,
        [result, document],
        api_visibility="private",
        show_progress="hidden",
    )


def _slider(
    label: str, least: float, most: float, value: float, step: float = 1, visible: bool = True
) -> Any:
    import gradio as gr

    size: dict[str, Any] = {"min_width": 120, "visible": visible, "buttons": []}
    return gr.Slider(least, most, value, step=step, label=label, **size)


def _guidance(value: float) -> Any:
    return _slider("Guidance", 0, 10, value, 0.1)


def _seed() -> Any:
    import gradio as gr

    return gr.Number(0, label="Seed", precision=0, minimum=0, min_width=120)


def _results(empty: str) -> Any:
    """Where parts are shown; pictures that are drawn there are offered by every canvas."""
    import gradio as gr

    remember = """
    watch("value", () => {
      const drawn = [...element.querySelectorAll("img.drawn")].map((image) => image.src);
      if (!drawn.length) return;
      window.cm3leon_drawn = [...new Set([...drawn, ...(window.cm3leon_drawn || [])])].slice(0, 6);
      window.dispatchEvent(new Event("cm3leon-drawn"));
    });
    """
    named = {"elem_classes": "results", "apply_default_css": False}
    return gr.HTML(show([], empty), js_on_load=remember, **named)


def _answer(
    triggers: Sequence[Any],
    answer: Callable[..., Iterator[Any]],
    generator: Generator,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> Any:
    """Has a tab's function run on its fields; one at a time runs for all pages."""
    import gradio as gr

    return gr.on(
        triggers,
        partial(_run, answer, generator),
        inputs,
        outputs,
        concurrency_limit=1,
        concurrency_id="model",
        api_visibility="private",
        show_progress="full",
    )


def _run(answer: Callable[..., Iterator[Any]], generator: Generator, *values: Any) -> Iterator[Any]:
    """What the function gives, parts as HTML; a ValueError becomes the page's message."""
    import gradio as gr

    try:
        for given in answer(generator, *values):
            parts, *more = given if isinstance(given, tuple) else (given,)
            yield (show(parts), *more) if more else show(parts)
    except ValueError as error:
        raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None
