"""Networks with their weights, each loaded once."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ultraflash_cli.engine.layers.memory_block import to_channels_last
from ultraflash_cli.engine.networks import NETWORKS, Config
from ultraflash_cli.engine.profiles import Profile
from ultraflash_cli.engine.seeds import generator_of
from ultraflash_cli.engine.stages.decoder import Decoder
from ultraflash_cli.engine.stages.generator import Generator
from ultraflash_cli.engine.stages.sr_dit import SrDit
from ultraflash_cli.engine.stages.text_encoder import TextEncoderConfig
from ultraflash_cli.errors import WeightsError
from ultraflash_cli.models.backend import backend_of, place
from ultraflash_cli.weights.manifest import WeightEntry, read_manifest
from ultraflash_cli.weights.store import WeightStore
from ultraflash_cli.weights.verify import verify

__all__ = ["TOKENIZER", "RandomShelf", "Shelf"]

TOKENIZER = "wan/tokenizer"
"""Name prefix of the tokenizer's files."""


class Shelf:
    """Networks with their weights, each loaded once per process and kept while its
    device has room."""

    def __init__(self, folder: Path | None = None) -> None:
        """Use weights of the package and, if ``folder`` is given, of the store
        there."""
        self.store = WeightStore(folder) if folder is not None else None
        self._networks: dict[tuple[object, ...], nn.Module] = {}
        self._hashes: dict[str, str] = {}

    @property
    def hashes(self) -> dict[str, str]:
        """The SHA-256 of the files used so far, by the names of the weights."""
        return dict(self._hashes)

    def path(self, weights: str) -> Path:
        """Return the checked file of these weights. Raises WeightsError if it is missing or changed."""
        entry = _entry(weights)
        path = verify(entry, self._store(entry), quick=True)
        self._hashes[weights] = self._sha256(entry)
        return path

    def folder(self, prefix: str) -> Path:
        """Return the folder of all checked files under a common prefix. Raises
        WeightsError like ``path``."""
        paths = [self.path(name) for name in _members(prefix)]
        return paths[0].parent

    def identity(self, prefix: str) -> str:
        """Return a value that changes with the files under a prefix. Raises
        WeightsError if one is not installed."""
        return " ".join(self._sha256(_entry(name)) for name in _members(prefix))

    def has(self, profile: Profile, part: str) -> bool:
        """Return whether the weights of a part are installed or random."""
        return profile.random_seed is not None or self._installed(_entry(self.served_by(profile.weight_of(part))))

    def served_by(self, weights: str) -> str:
        """Return the weights used for a name: its own or, if they are not installed,
        those of its fallback."""
        entry = _entry(weights)
        if entry.fallback is None or self._installed(entry) or not self._installed(_entry(entry.fallback)):
            return weights
        return entry.fallback

    def architecture(self, profile: Profile, part: str) -> str | None:
        """Return the architecture of a part's installed file; None if nothing is installed or it is random."""
        name = dict(profile.weights).get(part)
        if name is None or profile.random_seed is not None or not self.has(profile, part):
            return None
        entry = _entry(self.served_by(name))
        receipt = None if entry.packaged or self.store is None else self.store.receipt(entry)
        return (receipt.architecture if receipt else "") or entry.architecture

    def require(self, profile: Profile, parts: Iterable[str]) -> None:
        """Raise WeightsError, naming the weights to pull, if weights of these parts of
        a profile are not installed."""
        if profile.random_seed is not None:
            return
        parts = tuple(parts)
        wanted = dict.fromkeys(self.served_by(profile.weight_of(part)) for part in parts)
        if "text_encoder" in parts and isinstance(profile.text_encoder, TextEncoderConfig):
            wanted |= dict.fromkeys(_members(TOKENIZER))
        missing = [name for name in wanted if not self._installed(_entry(name))]
        if missing:
            pull = missing[0] if len(missing) == 1 else profile.name
            if all(name.startswith(f"{profile.name}-long/") for name in missing):
                pull = f"{profile.name}-long"
            named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            verb = "is" if len(missing) == 1 else "are"
            raise WeightsError(
                f"{profile.name} is not installed: {named} {verb} missing; run `ultraflash weights pull {pull}`"
            )

    def _installed(self, entry: WeightEntry) -> bool:
        if entry.packaged:
            return True
        return self.store is not None and self.store.installed(entry)

    def kept(self, folder: str) -> Path | None:
        """Return the folder for caching computed data; None without a store."""
        return None if self.store is None else self.store.root / folder

    def _sha256(self, entry: WeightEntry) -> str:
        store = self._store(entry)
        known = entry.sha256 if store is None else store.sha256(entry)
        assert known is not None, "the manifest checks that a file of the package has a hash"
        return known

    def _store(self, entry: WeightEntry) -> WeightStore | None:
        if entry.packaged:
            return None
        if self.store is None:
            raise WeightsError(
                f"{entry.name} is not part of the package, and no folder of downloaded weights was given"
            )
        return self.store

    def take(
        self,
        profile: Profile,
        part: str,
        config: Config,
        *,
        device: torch.device,
        dtype: torch.dtype,
        fp8: bool = False,
        folded: bool = False,
    ) -> nn.Module:
        """Return the network of a part of a profile, ready to run. Raises WeightsError
        for missing or invalid weights. ``fp8`` converts a transformer to 8 bits,
        ``folded`` folds the gates of an SR transformer, once.
        """
        key = (profile.name, part, config, device, dtype, fp8, folded)
        if key not in self._networks:
            network = self._load(profile, part, config, device, dtype)
            if fp8:
                assert isinstance(network, Generator | SrDit), f"{part} has no 8-bit form"
                network.to_fp8()
            if folded:
                assert isinstance(network, SrDit), f"the gates of {part} are not constant"
                network.fold_gates()
            self._networks[key] = network
        return self._networks[key]

    def drop(self, network: nn.Module) -> None:
        """Drop a network, so that its memory can be reused."""
        self._networks = {key: value for key, value in self._networks.items() if value is not network}

    def _load(self, profile: Profile, part: str, config: Config, device: torch.device, dtype: torch.dtype) -> nn.Module:
        build = NETWORKS[type(config)]
        if profile.random_seed is not None:
            network = build(config)
            _randomise(network, f"{profile.random_seed}/{part}")
            self._hashes[f"random/{part}"] = str(profile.random_seed)
        else:
            from ultraflash_cli.weights.convert import merge_lora
            from ultraflash_cli.weights.load import load_strictly, read_tensors

            weights = self.served_by(profile.weight_of(part))
            with torch.device("meta"):
                network = build(config)
            host = torch.device("cpu") if backend_of(device) else device
            tensors = read_tensors(self.path(weights), dtype=dtype, device=host)
            if part == "long_generator":
                lora = read_tensors(self.path(profile.weight_of("long_lora")), dtype=torch.float32, device=device)
                tensors = merge_lora(tensors, lora)
            load_strictly(network, _own_part(network, tensors), name=weights)
        return to_channels_last(place(network, device, dtype)).eval().requires_grad_(False)


class RandomShelf(Shelf):
    """A shelf with random weights: times and memory are realistic, pictures are
    meaningless."""

    def __init__(self) -> None:
        super().__init__(None)

    def has(self, profile: Profile, part: str) -> bool:
        return True

    def require(self, profile: Profile, parts: Iterable[str]) -> None:
        """Do nothing, as no weights are needed."""

    def _load(self, profile: Profile, part: str, config: Config, device: torch.device, dtype: torch.dtype) -> nn.Module:
        with torch.device("meta"):
            network = NETWORKS[type(config)](config)
        network = network.to(dtype).to_empty(device=device)
        _randomise(network, part)
        return to_channels_last(network).eval().requires_grad_(False)


def _entry(weights: str) -> WeightEntry:
    return read_manifest()[weights]


def _members(prefix: str) -> list[str]:
    return [name for name in read_manifest() if name == prefix or name.startswith(f"{prefix}/")]


def _own_part(network: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the network's top-level names; a file may also contain
    the other half of a coder."""
    own = {name.split(".")[0] for name in network.state_dict()}
    halves = {"encoder", "decoder", "condition", "conv1", "conv2"}
    return {n: x for n, x in tensors.items() if n.split(".")[0] in own or n.split(".")[0] not in halves}


def _randomise(network: nn.Module, name: str) -> None:
    """Set every parameter to seeded random values whose scale keeps activations of
    order one."""
    generator: torch.Generator | None = None
    for path, parameter in network.named_parameters():
        generator = generator or generator_of(name, device=parameter.device)
        values = torch.randn(parameter.shape, generator=generator, device=parameter.device)
        if path.endswith("bias"):
            values = 0.1 * values
        elif parameter.numel() == parameter.shape[0]:  # the weights of a norm
            values = 1 + 0.1 * values
        else:
            values = values * (0.9 / parameter[0].numel() ** 0.5)
        parameter.data.copy_(values)
    if isinstance(network, Decoder):  # so that pictures are neither black nor uniform
        last = [layer for layer in network.decoder if isinstance(layer, nn.Conv2d)][-1]
        assert last.bias is not None
        last.weight.data.mul_(3)
        last.bias.data.fill_(0.5)
