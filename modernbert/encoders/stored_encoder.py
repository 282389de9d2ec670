"""The base of the encoders that sentence-transformers stores: a model, and what follows it."""

from __future__ import annotations

from typing import ClassVar, Generic, Protocol, Self, TypeVar

import torch
from torch import nn

from modernbert.checkpoint import PreTrained, load
from modernbert.stored import CheckpointPath


class EncoderConfig(Protocol):
    """What the configurations of all stored encoders have."""

    @property
    def encoder(self) -> CheckpointPath: ...


Config = TypeVar("Config", bound=EncoderConfig)


class StoredEncoder(nn.Module, Generic[Config]):
    """A model with what its checkpoint puts behind it; created from the model and `Config`."""

    model_class: ClassVar[type[PreTrained]]
    """The class of the model."""

    @classmethod
    def load(
        cls,
        config: Config,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        attention: str = "auto",
    ) -> Self:
        """Load an encoder for inference: in eval mode, without gradients.

        Args:
            config: the configuration, which names the folders of the weights (its `from_folder`).
            device: where the weights are put.
            dtype: the dtype of the model; what follows it always runs in fp32.
            attention: one of `modernbert.attention_kernels.BACKENDS`, or "auto" for the best one on
                `device`.

        Raises:
            CheckpointError: where a file or a weight is missing or does not fit.
            ConfigError: for a model whose configuration cannot be used.

        Example:
            >>> config = SentenceConfig.from_folder(resolve("my-org/modernbert-embed"))
            >>> encoder = SentenceEncoder.load(config)
        """
        model = load(
            cls.model_class, config.encoder, device=device, dtype=dtype, attention=attention
        )
        return cls(model, config).to(device).eval().requires_grad_(False)
