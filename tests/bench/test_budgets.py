"""What a group at full size launches and moves on a GPU: budgets that only ever fall."""

import pytest

from ultraflash_cli.bench.trace import TRACES, trace

BUDGETS = {
    # launches, GB that all move, GB that passes without arithmetic move
    "generator": (3053, 150, 55.1),
    "generator fp8": (3503, 152, 77.2),
    "encoder": (474, 21.5, 11.2),
    "upsampler 1k": (72, 4.3, 1.1),
    "upsampler 2k": (72, 9.6, 2.4),
    "SR transformer 1k": (678, 193, 72.5),
    "SR transformer 2k": (678, 432, 163),
    "SR transformer 1k fp8": (768, 205, 108),
    "SR transformer 2k fp8": (768, 461, 243),
    "decoder 1k": (186, 64, 20),
    "decoder 2k": (279, 145, 45),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_group_stays_within_its_budget(name: str) -> None:
    launches, moved_gb, passes_gb = BUDGETS[name]
    found = trace(name)
    assert found.count <= launches
    assert found.bytes <= moved_gb * 1e9
    assert found.pass_bytes <= passes_gb * 1e9
    # Nor may a budget be left far above what is true.
    assert found.bytes > 0.97 * moved_gb * 1e9 and found.count > 0.97 * launches


def test_arithmetic_is_that_of_the_published_model() -> None:
    """Per 12 frames, docs/architecture.md: the trace neither loses nor invents work."""
    names = ("generator", "decoder 1k", "upsampler 1k", "SR transformer 1k", "SR transformer 2k")
    flops = {name: trace(name).flops / 1e12 for name in names}
    assert flops["SR transformer 1k"] / 2 == pytest.approx(61, rel=0.01)
    assert flops["SR transformer 2k"] / 2 == pytest.approx(138, rel=0.01)
    assert flops["generator"] == pytest.approx(141, rel=0.01)
    assert flops["decoder 1k"] / 2 == pytest.approx(6.5, rel=0.03)
    assert flops["upsampler 1k"] / 2 == pytest.approx(0.7, rel=0.03)
