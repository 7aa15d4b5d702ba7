"""Captioned clips into shards, and training on them: every class of the published model at a
tiny size."""

import json
import shutil
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.train.made import moving_shapes
from ultraflash_cli.errors import InputError
from ultraflash_cli.main import main
from ultraflash_cli.train import encode
from ultraflash_cli.train.captioned import captioned_clips
from ultraflash_cli.train.encoded import EncodedClips, encoded_batch, read_members
from ultraflash_cli.train.scene_pairs import SceneWindow


def write_clip(path: Path, seed: int, *, frames: int, size: tuple[int, int], fps: int = 16) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for rgb in moving_shapes(seed, frames=frames, side=max(size)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[: size[0], : size[1]]))
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips: a long one at twice the rate, a tall one, one too short."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "a.mkv", 1, frames=96, size=(66, 100), fps=32)
    write_clip(folder / "b.mkv", 2, frames=45, size=(96, 64))
    write_clip(folder / "c.mkv", 3, frames=5, size=(64, 96))
    for name, words in (("a", "discs"), ("b", "rings")):
        (folder / f"{name}.txt").write_text(words)
    record = {"caption": "short", "licence": "MIT", "source": "the test"}
    (folder / "c.json").write_text(json.dumps(record))
    return folder


WORDS = [
    *("--profile", "tiny-random", "--licence", "CC0", "--device", "cpu", "--threads", "1"),
    *("--size", "96x64", "--size", "64x96", "--latents", "12", "--latents", "6"),
    *("--shard-clips", "2", "--aigc", "1", "--regenerate", "0.5"),
]


@pytest.fixture(scope="module")
def shards(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoded") / "shards"
    assert main(["train", "encode", str(clips), "--out", str(out), *WORDS]) == 0
    return out


def test_a_sample_holds_latents_partners_words_and_where_they_come_from(shards: Path) -> None:
    assert [path.name for path in sorted(shards.iterdir())] == [
        "shard-00000.tar",
        "shard-00001.tar",
    ]
    found = EncodedClips(shards)
    assert sorted(sample.bucket for sample in found.samples) == [(12, 8, 12), (12, 12, 8)]
    assert found.licences == {"CC0": 2}
    sample = found.samples[0]
    assert sample.facts["caption"] == "discs" and sample.facts["clip"] == "a.mkv"
    assert sample.read("high.npy").dtype == np.float16
    assert [sample.read(name).shape for name in sample.partners] == [(16, 12, 4, 6)] * 2
    assert sample.read("text.npy").shape[1] == 24
    logs = [entry["operator"] for each in found.samples for log in each.facts["partners"] for entry in log]
    assert {"generator", "deliver"} & set(logs)
    with tarfile.open(sample.shard) as tar:  # as any WebDataset reader sees it
        names = [name for name in tar.getnames() if name.startswith(sample.key)]
    assert names[-1] == f"{sample.key}.json" and len(names) == 5


def test_a_killed_encoding_resumes_after_the_last_whole_sample(clips: Path, shards: Path, tmp_path: Path) -> None:
    whole = (shards / "shard-00000.tar").read_bytes()
    second = read_members(shards / "shard-00000.tar")[1]
    part = tmp_path / "shard-00000.part"
    part.write_bytes(whole[: second.members["low0.npy"][0] + 100])
    shutil.copy(shards / "shard-00001.tar", tmp_path)
    assert main(["train", "encode", str(clips), "--out", str(tmp_path), *WORDS]) == 0
    assert (tmp_path / "shard-00000.tar").read_bytes() == whole
    assert not part.exists()


def test_a_batch_is_of_one_bucket_and_follows_from_its_number(shards: Path) -> None:
    window = SceneWindow(latents=6, rows=12, columns=12, step=2, group=6)
    batch = [encoded_batch(shards, window, 1, 2, number) for number in (0, 0, 1, 2, 3)]
    assert torch.equal(batch[0][1], batch[1][1])
    shapes = {(tuple(low.shape[2:]), tuple(high.shape[2:])) for low, high, _, _ in batch}
    assert shapes <= {((6, 4, 6), (6, 8, 12)), ((6, 6, 4), (6, 12, 8))}
    assert batch[0][2] == 2 and batch[0][3].shape[::2] == (2, 24)
    with pytest.raises(InputError, match="24 are needed"):
        encoded_batch(shards, SceneWindow(latents=24, group=6), 1, 1, 0)


def test_clips_without_words_or_licence_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no clips"):
        captioned_clips(tmp_path, licence=None)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError, match="no caption"):
        captioned_clips(tmp_path, licence="MIT")
    (tmp_path / "captions.jsonl").write_text('{"file": "a.mp4", "caption": "x"}\n')
    with pytest.raises(InputError, match="no licence"):
        captioned_clips(tmp_path, licence=None)
    assert captioned_clips(tmp_path, licence="MIT")[0].caption == "x"


def random_shard(folder: Path) -> Path:
    """Two samples of smooth latents, with embeddings, as `encode` writes them."""
    folder.mkdir()
    rng = torch.Generator().manual_seed(4)
    for number in range(2):
        low = torch.randn(16, 12, 4, 6, generator=rng)
        high = torch.nn.functional.interpolate(low, scale_factor=2.0, mode="bilinear")
        text = torch.randn(5, 24, generator=rng)
        facts = {"caption": "x", "licence": "CC0", "scale": 2, "latents": list(high.shape[1:])}
        members = {"high": high, "low0": low, "text": text}
        arrays = {f"{name}.npy": encode._npy(x) for name, x in members.items()}
        encode._append(
            folder / "shard-00000.tar",
            f"{number:07d}_000",
            arrays | {"json": json.dumps(facts).encode()},
        )
    return folder


def test_the_published_chain_trains_on_shards_at_a_tiny_size(tmp_path: Path) -> None:
    """Flow matching from a text-to-video transformer, distillation, preference: with
    prompt embeddings, recomputed activations, frozen networks in bfloat16, partial
    decoding, and six groups whose last ones are trained on."""
    from safetensors.torch import save_file

    shards = random_shard(tmp_path / "shards")
    from ultraflash_cli.engine.profiles import TINY_RANDOM
    from ultraflash_cli.engine.stages.generator import Generator
    from ultraflash_cli.train.recipes import tv2v_flow_matching
    from ultraflash_cli.train.roles import CascadeRoles

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        roles = CascadeRoles(TINY_RANDOM, ("upsamplers", "decoder"))
        assert TINY_RANDOM.generator is not None
        generator = Generator(TINY_RANDOM.generator)
    save_file(
        {name: x.contiguous() for name, x in roles.state_dict().items()},
        tmp_path / "others.safetensors",
    )
    save_file(generator.state_dict(), tmp_path / "t2v.safetensors")

    def run(recipe: str, out: str, *words: str) -> dict[str, torch.Tensor]:
        fixed = ["--steps", "2", "--data", str(shards), "--out", str(tmp_path / out)]
        fixed += ["--profile", "tiny-random", "--device", "cpu", "--workers", "0", "--threads", "1"]
        small = ["window.rows=8", "window.columns=8", "window.latents=12", "loop.precision=fp32"]
        for setting in (*small, "loop.warmup=1", "loop.rate=1e-3", "sample_steps=1"):
            fixed += ["--set", setting]
        assert main(["train", "run", recipe, *fixed, *words]) == 0
        return torch_load(tmp_path / out)

    def torch_load(folder: Path) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(folder / "average.safetensors")

    start = ["--start-from", str(tmp_path / "others.safetensors")]
    t2v = f"generator={tmp_path / 't2v.safetensors'}"
    tv2v = run("tv2v_flow_matching", "tv2v", *start, "--start-from", t2v)
    wide = tv2v["sr_dit.patch_embedding.weight"]
    assert wide.shape[1] == 32 and not torch.equal(wide[:, 16:], torch.zeros_like(wide[:, 16:]))
    near = generator.state_dict()["blocks.0.ffn.0.weight"]
    torch.testing.assert_close(tv2v["sr_dit.blocks.0.ffn.0.weight"], near, rtol=0, atol=0.01)

    average = ["--start-from", str(tmp_path / "tv2v" / "average.safetensors")]
    rewards = ["--reward", "texture=0.1", "--reward", "temporal=0.1"]
    dmd_words = ["--set", "critic_updates=2", "--set", "decoded=[4, 4]", *rewards]
    dmd = run("causal_dmd", "dmd", *average, *dmd_words)
    assert not torch.equal(dmd["sr_dit.head.head.weight"], tv2v["sr_dit.head.head.weight"])

    both = [*average, "--start-from", str(tmp_path / "dmd" / "average.safetensors")]
    dpo = run("cascade_dpo", "dpo", *both, "--set", "graded_groups=1", "--set", "stronger_steps=1")
    assert not torch.equal(dpo["sr_dit.head.head.weight"], dmd["sr_dit.head.head.weight"])
    assert tv2v_flow_matching.NETWORKS == ("sr_dit",)
