import pytest
import torch

from pilgrim.core.runtime import Runtime
from pilgrim.infer.engine import Engine
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)


@pytest.fixture(scope="session")
def model() -> Transformer:
    """Random in all its weights, so that attention matters and nothing is said twice for long."""
    settings = ModelSettings(depth=2, width=32, head_size=8, heads=4, kv_heads=2, context=64)
    model = Transformer(settings.config(vocab_size=97))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * parameter.shape[-1] ** -0.5 * 2
            )
    return model


@pytest.fixture(scope="session")
def engine(model: Transformer, runtime: Runtime) -> Engine:
    return Engine(model, runtime)
