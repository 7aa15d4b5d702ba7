"""Settings by name, and profiles in TOML files."""

from pathlib import Path

import pytest

from ultraflash_cli.engine.profiles import ULTRAFLASH
from ultraflash_cli.errors import UsageError
from ultraflash_cli.train.recipes import causal_dmd, generator, tv2v_flow_matching
from ultraflash_cli.train.settings import changed, find_profile, parse_settings


def test_a_setting_is_changed_by_its_dotted_name_as_its_type() -> None:
    config = causal_dmd.configure(steps=3, seed=1, profile=ULTRAFLASH)
    words = [
        ("loop.rate", "1e-4"),
        ("guidance", "3"),
        ("decoded", "[16, 24]"),
        ("profile.sr_dit.num_layers", "4"),
        ("rewards", '[["texture", 1]]'),
        ("loop.precision", "fp32"),
        ("loop.recompute", "false"),
    ]
    config = changed(config, parse_settings(words))
    assert (config.loop.rate, config.guidance, config.decoded) == (1e-4, 3.0, (16, 24))
    assert config.rewards == (("texture", 1.0),)
    assert config.profile.sr_dit is not None and config.profile.sr_dit.num_layers == 4
    assert (config.loop.precision, config.loop.recompute) == ("fp32", False)
    assert changed(config, parse_settings([("decoded", "none")])).decoded is None


def test_a_group_of_settings_is_an_inline_table() -> None:
    config = generator.configure(steps=3, seed=1)
    table = "[{latents = 3, clips = 2, odds = [1, 0.5], anywhere = true}, {latents = 6}]"
    config = changed(config, parse_settings([("lengths", table)]))
    first = generator.ClipLength(latents=3, clips=2.0, odds=(1.0, 0.5), anywhere=True)
    assert config.lengths == (first, generator.ClipLength(latents=6))
    with pytest.raises(UsageError, match="setting lengths"):
        changed(config, parse_settings([("lengths", "[{latents = 3, frames = 2}]")]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("loop.speed", "1", "no field 'speed'"),
        ("loop.rate", "fast", "expected float"),
        ("loop.batch", "true", "expected int"),
        ("loop.batch.size", "1", "has no fields"),
        ("loop.precision", "fp8", "setting loop.precision"),
        ("window", "3", "expected SceneWindow"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(name: str, value: str, message: str) -> None:
    config = tv2v_flow_matching.configure(steps=3, seed=1)
    with pytest.raises(UsageError, match=message):
        changed(config, parse_settings([(name, value)]))


def test_a_profile_may_be_a_file_with_the_fields_that_differ(tmp_path: Path) -> None:
    path = tmp_path / "half.toml"
    path.write_text('base = "ultraflash"\nbase_size = [240, 416]\n[sr_dit]\nnum_layers = 15\n')
    profile = find_profile(str(path))
    assert (profile.name, profile.base_size) == ("half", (240, 416))
    assert profile.sr_dit is not None and profile.sr_dit.num_layers == 15
    assert profile.decoder == ULTRAFLASH.decoder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('base = "huge"', "base must be one of"),
        ('base = "lite"\nlayers = 3', "no field 'layers'"),
        ("base = ", "not readable as TOML"),
    ],
)
def test_a_profile_that_cannot_be_used_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.toml").write_text(content)
    with pytest.raises(UsageError, match=message):
        find_profile(str(tmp_path / "p.toml"))
    with pytest.raises(UsageError, match="unknown profile"):
        find_profile("p")
