"""`pilgrim export`: a trained model for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pilgrim.cli.base import RunArgument, app, examples, find_run, guarded
from pilgrim.core.errors import PilgrimError


@app.command(
    epilog=examples(
        "Examples",
        ("pilgrim export pocket --to hf --out pocket-hf", "for transformers, vLLM and others"),
        ("pilgrim export pocket --to gguf --out pocket.gguf", "for llama.cpp, Ollama and LM Studio"),
    )
)
@guarded()
def export(
    run: RunArgument,
    to: Annotated[
        Literal["hf", "gguf"], typer.Option(help="hf: a Hugging Face folder; gguf: a file for llama.cpp.")
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="PATH", help="The folder or file to write; an earlier export is replaced."),
    ],
    dtype: Annotated[
        Literal["fp32", "bf16", "q8_0"],
        typer.Option(
            help="fp32: to the bit what was trained; bf16: half as large; q8_0, for gguf: a quarter."
        ),
    ] = "fp32",
) -> None:
    """Write a trained model for other programs.

    The model is numerically Qwen3ForCausalLM, so whatever runs Qwen3 runs it; the tokenizer and the chat
    template come along. hf is for transformers, vLLM and MLX; gguf for llama.cpp, Ollama and LM Studio.
    """
    folder = find_run(run)
    if to == "gguf":
        from pilgrim.export import gguf

        typer.echo(f"wrote {gguf.export(folder, out, dtype, say=typer.echo)}")
    else:
        from pilgrim.export import huggingface

        if dtype == "q8_0":
            raise PilgrimError("--dtype q8_0 is a format of gguf; with --to hf, take bf16")
        typer.echo(f"wrote {huggingface.export(folder, out, dtype, say=typer.echo)}")
