"""The shape of a network: one dial, `depth`, and what follows from it.

Width, heads and the MLP's size grow with depth in fixed proportion (width 64 per layer, heads of 128,
an MLP three times as wide), so that "bigger" is one number and two sizes can be compared. Each derived
value can be overridden; `resolved()` writes them all out, so that a saved recipe hides nothing.

With `window` some layers see only that many tokens back (Beltagy et al. 2020; mixed with layers that see
everything in Mistral, Gemma 2 and nanochat). Such a layer's work no longer grows with the row, and what lies
farther back still arrives through the others. `window_pattern` says which is which, one letter a layer.
"""

from pydantic import Field, model_validator

from pilgrim.core.config import Settings

WINDOW_PATTERN = "SSSL"  # three layers with a window, then one without


class ModelSettings(Settings):
    """`[model]` of a recipe. None means: derived from `depth`; a resolved recipe shows the value."""

    depth: int = Field(default=4, ge=1, le=200, description="number of layers: the one dial")
    width: int | None = Field(default=None, ge=8, description="size of the residual stream; 64 x depth")
    head_size: int | None = Field(
        default=None,
        ge=2,
        description="size of one attention head; 128, or 64 where 128 does not divide width",
    )
    heads: int | None = Field(default=None, ge=1, description="query heads; width / head_size")
    kv_heads: int | None = Field(
        default=None, ge=1, description="key and value heads (GQA); as many as heads"
    )
    mlp_width: int | None = Field(default=None, ge=8, description="hidden size of the SwiGLU MLP; 3 x width")
    context: int = Field(default=512, ge=8, description="longest sequence it is trained on, in tokens")
    window: int | None = Field(
        default=None,
        ge=1,
        description="tokens that a layer with a sliding window sees; left out: all, always",
    )
    window_pattern: str | None = Field(
        default=None,
        pattern="^[SL]+$",
        description="S: window, L: everything; repeated over the layers, the last is always L; SSSL",
    )
    rope_theta: float = Field(default=10_000.0, gt=1, description="base of the rotary position frequencies")
    norm_eps: float = Field(default=1e-6, gt=0, description="added inside RMSNorm's square root")
    tied: bool = Field(default=False, description="share one matrix between embedding and head")
    softcap: float | None = Field(
        default=None, gt=0, description="bound of the scores: softcap · tanh(score / softcap); Qwen3 has none"
    )

    def resolved(self) -> "ModelSettings":
        """The same settings with every derived value written out."""
        width = self.width or 64 * self.depth
        head_size = self.head_size or next((d for d in (128, 64) if width % d == 0), min(128, width))
        heads = self.heads or max(1, width // head_size)
        return self.model_copy(
            update={
                "width": width,
                "head_size": head_size,
                "heads": heads,
                "kv_heads": self.kv_heads or heads,
                "mlp_width": self.mlp_width or 3 * width,
                "window_pattern": self.window and _letters(self.window_pattern or WINDOW_PATTERN, self.depth),
            }
        )

    def config(self, vocab_size: int) -> "ModelConfig":
        """The network's shape for a tokenizer of `vocab_size` tokens."""
        return ModelConfig.model_validate({**self.resolved().model_dump(), "vocab_size": vocab_size})

    @model_validator(mode="after")
    def _windows_hide_something(self) -> "ModelSettings":
        if self.window_pattern and not self.window:
            raise ValueError(
                f'model.window_pattern = "{self.window_pattern}" needs a window; '
                f"try model.window = {max(1, self.context // 4)}, or leave the pattern out"
            )
        if self.window and self.window >= self.context:
            raise ValueError(
                f"model.window = {self.window} must be less than model.context = {self.context}, "
                f"or it hides nothing; try {max(1, self.context // 4)}, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelSettings":
        full = self.resolved()
        assert full.width and full.heads and full.kv_heads and full.head_size
        if self.heads is None and full.width % 2:
            raise ValueError(
                f"model.width = {full.width} must be even, because it is divided into heads of an even size; "
                f"try {full.width + 1}, or set model.heads"
            )
        if full.head_size % 2:
            cure = full.head_size + 1 if self.heads else _nearest_divisor(full.width, full.head_size, 2)
            raise ValueError(
                f"model.head_size = {full.head_size} must be even, because rotary positions turn pairs; "
                f"try {cure}"
            )
        if self.heads is None and full.width % full.head_size:
            raise ValueError(
                f"model.head_size = {full.head_size} must divide model.width = {full.width}; "
                f"try {_nearest_divisor(full.width, full.head_size, 2)}, or set model.heads"
            )
        if full.heads % full.kv_heads:
            raise ValueError(
                f"model.kv_heads = {full.kv_heads} must divide model.heads = {full.heads}; "
                f"try {_nearest_divisor(full.heads, full.kv_heads)}"
            )
        return self


class ModelConfig(Settings):
    """Everything that fixes the network's shape; saved with every checkpoint."""

    vocab_size: int
    depth: int
    width: int
    head_size: int
    heads: int
    kv_heads: int
    mlp_width: int
    context: int
    rope_theta: float
    norm_eps: float
    tied: bool
    softcap: float | None = None
    window: int | None = None
    window_pattern: str | None = None  # resolved: a letter for every layer

    @property
    def windows(self) -> tuple[int | None, ...]:
        """How many tokens each layer sees, itself included; None is all before it."""
        return tuple(
            self.window if letter == "S" else None for letter in self.window_pattern or "L" * self.depth
        )


def _letters(pattern: str, depth: int) -> str:
    """The pattern as long as the network is deep. The last layer sees everything, whatever it says."""
    return (pattern * depth)[: depth - 1] + "L"


def _nearest_divisor(of: int, near: int, multiple_of: int = 1) -> int:
    divisors = (d for d in range(multiple_of, of + 1, multiple_of) if of % d == 0)
    return min(divisors, key=lambda d: (abs(d - near), d))
