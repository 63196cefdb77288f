"""Serves the page to browsers of this machine.

Gradio's own servers are told nothing, and the browser is forbidden to ask any other than this one.
"""

import contextlib
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from cm3leon_jax.decoding.generator import Generator
from cm3leon_jax.demo.canvas import MAX_BYTES
from cm3leon_jax.demo.page import build

HOST = "127.0.0.1"  # reached from elsewhere through an SSH tunnel
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'self';"
    " form-action 'self'; frame-ancestors 'none'"
)


def check_installed() -> None:
    """Raises ValueError where Gradio is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ValueError("demo needs Gradio: pip install 'cm3leon_jax[demo]'") from None


def bind(port: int) -> socket.socket:
    """A socket that listens on loopback; port 0 takes any that is free."""
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        rule = "name another port, or 0 for any that is free"
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"port={port}: {reason}; {rule}") from None


def serve(generator: Generator, place: socket.socket) -> None:
    """Serves the page at a socket of `bind` until Ctrl-C.

    What Gradio writes is in a folder of its own, which is gone at the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        server = make_server(generator)
        print(f"open http://{HOST}:{place.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[place])


def make_server(generator: Generator) -> Any:
    """A uvicorn server of the page; `run(sockets=[...])` serves it."""
    check_installed()
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    accent = "#1f5fbf"
    theme = gr.themes.Base(
        primary_hue=gr.themes.Color(*[accent] * 11),
        neutral_hue="slate",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    app = gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        build(generator),
        "/",
        HOST,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css_paths=[Path(__file__).with_name("page.css")],
    )
    # A page of another site that has a name which points here gets no answer.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    app.add_middleware(_forbid_others)
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))


def _forbid_others(app: Any) -> Any:
    """The ASGI app with POLICY in every answer, and none for what pages of other sites send."""
    from starlette.responses import PlainTextResponse

    async def call(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        if headers.get(b"origin") not in (None, b"http://" + headers.get(b"host", b"")):
            await PlainTextResponse("from another site", 403)(scope, receive, send)
            return

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", POLICY.encode())
                message = message | {"headers": [*message["headers"], policy]}
            await send(message)

        await app(scope, receive, send_with_policy)

    return call
