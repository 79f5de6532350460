"""The demo domain: its words, and its renderer against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from dreamflow_core.cameras import VIEW_WORDING
from dreamflow_core.demo import truth
from dreamflow_core.demo.dataset import SurfaceBank, in_half
from dreamflow_core.demo.judge import colour_shares
from dreamflow_core.demo.shapes import BOUNDING_RADIUS, SHAPES
from dreamflow_core.demo.vocabulary import SLOTS, Description, UnknownWord, all_descriptions, parse, without_side


def cameras(*angles: tuple[float, float]):
    azimuth, elevation = (torch.tensor(column, dtype=torch.float32) for column in zip(*angles))
    return truth.demo_cameras(azimuth, elevation)


@pytest.mark.parametrize(
    "prompt,expected",
    [
        ("", Description()),
        ("a red cube", Description("cube", "red", None, "plain")),
        (
            "A red and blue striped duck, seen from the front, on a white background.",
            Description("duck", "red", "blue", "striped", "front", "white"),
        ),
        ("spotted pink star from above", Description("star", "pink", None, "spotted", "overhead")),
        ("grey background", Description(background="gray")),
        ("a car, rear three-quarter view", Description("car", pattern="plain", view="back-quarter")),
        ("a car, front quarter view", Description("car", pattern="plain", view="front-quarter")),
        ("a car, rear left three-quarter view", Description("car", pattern="plain", view="back-left")),
        ("a car, seen from the side", Description("car", pattern="plain", view="side")),
        ("a car, seen from its right side", Description("car", pattern="plain", view="right")),
    ],
)
def test_parse(prompt, expected):
    assert parse(prompt) == expected


def test_every_description_survives_its_words():
    descriptions = all_descriptions(SLOTS)
    assert len(descriptions) == 8 * 13 * 4 * (8 + 3 * 8 * 7)
    assert all(parse(d.prompt()) == d for d in descriptions[::7])


def test_wordings_of_views_are_read_as_those_views():
    """What the view-dependent prompt says of each view is in the vocabulary, under that view's name."""
    for name, wording in VIEW_WORDING.items():
        assert parse(f"a red cube, {wording}").view == name


def test_unknown_words_are_named_with_the_known_ones():
    with pytest.raises(UnknownWord, match=r"'dragon'.*shape: sphere.*colour: red.*view: front.*background: white"):
        parse("a red dragon")
    with pytest.raises(ValueError, match="'cube' is one shape too many"):
        parse("a sphere cube")
    with pytest.raises(ValueError, match="'green' is one second too many"):
        parse("a red blue green cube")


@pytest.mark.parametrize("shape", SHAPES)
def test_marching_finds_the_first_surface(shape):
    """Sphere tracing stops where a dense walk along the ray first finds the inside, and misses nothing."""
    distance = SHAPES[shape]
    direction = torch.nn.functional.normalize(torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    assert (distance(direction * BOUNDING_RADIUS) > 0).all()
    origins, directions = (r.reshape(-1, 3) for r in cameras((35, 20), (200, -30)).rays(20))
    walk = torch.arange(1.9, 4.1, 0.004)
    inside = distance(origins[:, None] + walk[:, None] * directions[:, None]) < 0
    depth, hit = truth._march(distance, origins, directions)
    first = walk[inside.float().argmax(1)]
    solid = inside.any(1)
    assert (solid & ~hit).sum() == 0
    assert (hit & ~solid).sum() <= 4
    # Grazing rays end within the tracer's tolerance of the surface, which is farther along the ray.
    error = (depth - first)[solid].abs()
    assert error.quantile(0.9) < 0.006
    # A few that graze a flat ellipsoid (the duck's beak), whose distance is overestimated, slip past it.
    assert (error > 0.06).float().mean() < 0.01


def test_sphere_is_a_disc_of_the_known_size():
    """Tangent rays: the silhouette's angle is asin(r / distance)."""
    surface = truth.trace("sphere", cameras((0, 0)), 64)
    half = math.tan(math.radians(truth.CAMERA_FOV) / 2)
    radius = math.tan(math.asin(0.75 / truth.CAMERA_RADIUS)) / half * 32
    assert surface.alpha.sum().item() == pytest.approx(math.pi * radius**2, rel=0.005)
    centre = (..., slice(31, 33), slice(31, 33))
    torch.testing.assert_close(surface.depth[centre].mean().item(), truth.CAMERA_RADIUS - 0.75, atol=3e-3, rtol=0)
    covered = surface.alpha[:, 0] > 0.99
    position = surface.position.permute(0, 2, 3, 1)[covered]
    normal = surface.normal.permute(0, 2, 3, 1)[covered]
    torch.testing.assert_close(position.norm(dim=1), torch.full((len(position),), 0.75), atol=4e-3, rtol=0)
    assert (torch.nn.functional.normalize(position, dim=1) * normal).sum(1).min() > 0.99


def test_torus_is_open_and_cube_is_square():
    from_above = truth.trace("torus", cameras((0, 65)), 64)
    assert from_above.alpha[0, 0, 30:34, 30:34].max() == 0
    front = truth.trace("cube", cameras((0, 0)), 64).alpha[0, 0]
    assert front.sum(0).max().item() == pytest.approx(front.sum(1).max().item(), abs=0.6)


@pytest.mark.parametrize("shape", ["car", "duck", "rabbit"])
def test_front_and_back_differ(shape):
    surface = truth.trace(shape, cameras((0, 10), (180, 10)), 64)
    front, back = surface.depth[0, 0], surface.depth[1, 0].flip(-1)
    both = (surface.alpha[0, 0] > 0.9) & (surface.alpha[1, 0].flip(-1) > 0.9)
    assert (front - back)[both].abs().mean() > 0.05


def test_patterns_stick_to_the_surface():
    """Two views of the same point have the same colour share: patterns are solid, not screen space."""
    generator = torch.Generator().manual_seed(0)
    for kind in truth.PATTERNS[1:]:
        pattern = truth.Pattern.sample(kind, 1, generator)
        flat = torch.rand(1, 3, 8, 8, generator=generator) - 0.5
        zero = torch.zeros(1, 1, 8, 8)
        near = truth.Surface(zero, flat, flat, zero, pixel=0.01)
        mirrored = truth.Surface(zero, flat.flip(-1), flat, zero, pixel=0.01)
        torch.testing.assert_close(pattern.mask(near).flip(-1), pattern.mask(mirrored))


@pytest.mark.parametrize("kind,share", [("striped", 0.5), ("checkered", 0.5), ("spotted", math.pi * 0.32**2)])
def test_pattern_fills_its_known_share_of_space(kind, share):
    generator = torch.Generator().manual_seed(0)
    pattern = truth.Pattern.sample(kind, 64, generator)
    position = 20 * torch.randn(64, 3, 40, 40, generator=generator)
    zero = torch.zeros(64, 1, 40, 40)
    mask = pattern.mask(truth.Surface(zero, position, position, zero, pixel=1e-4))
    assert mask.mean().item() == pytest.approx(share, abs=0.01)


def test_variety_widens_scales_and_directions():
    one, two = (truth.Pattern.sample("striped", 2000, torch.Generator().manual_seed(0), v) for v in (1.0, 2.0))
    assert one.frequency.std() * 2 == pytest.approx(two.frequency.std().item(), rel=1e-4)
    assert one.frequency.mean() == pytest.approx(two.frequency.mean().item(), rel=0.01)
    angle = [(p.frame[:, 0] @ p.frame[:, 0].mean(0)).clamp(max=1).arccos().mean() for p in (one, two)]
    assert angle[1] / angle[0] == pytest.approx(2, rel=0.1)


def test_painted_colours_are_the_palette_in_the_light():
    surface = truth.trace("sphere", cameras((0, 0)), 64)
    colour, black = torch.tensor([truth.COLOURS["cyan"]]), torch.zeros(1, 3)
    image = truth.paint(surface.alpha, surface.shade(), torch.zeros_like(surface.alpha), colour, black, black)
    ratio = image[0, :, 20:44, 20:44] / colour[0, :, None, None]
    assert ratio.std(0).max() < 1e-5
    assert ratio.min() > 0.4 and ratio.max() <= 1


def test_colour_statistics_tell_every_colour():
    surface = truth.trace("duck", cameras((30, 20)), 64)
    for name, value in truth.COLOURS.items():
        for background in truth.BACKGROUNDS.values():
            colours = (torch.tensor([value]), torch.zeros(1, 3), torch.tensor([background]))
            image = truth.paint(surface.alpha, surface.shade(), torch.zeros_like(surface.alpha), *colours)
            assert colour_shares(image[0])[name] > 0.97, (name, background)


def test_bank_paints_what_it_says(tmp_path):
    bank = SurfaceBank(32, views=3, half="model", seed=0, cache=tmp_path)
    batch = bank.batch(40, torch.Generator().manual_seed(0))
    assert batch.images.shape == (40, 3, 32, 32) and batch.images.abs().max() <= 1
    assert [int((batch.truth[:, 3] == kind).sum()) for kind in (1, 2, 3, 4)] == [5, 5, 15, 15]
    assert (batch.truth[batch.truth[:, 3] == 1, 2] == 0).all()
    views = list(SLOTS).index("view")
    view_columns = (batch.truth[:, views], batch.words[:, views])
    told = batch.words != 0
    told[:, views] = False
    assert torch.equal(batch.words[told], batch.truth[told])
    either = 0
    for shown, said in zip(*([(None, *SLOTS["view"])[i] for i in column.tolist()] for column in view_columns)):
        assert said in (None, shown, without_side(shown))
        either += said not in (None, shown)
    assert 0 < either < 20
    cached = SurfaceBank(32, views=3, half="model", seed=0, cache=tmp_path)
    assert torch.equal(cached.batch(40, torch.Generator().manual_seed(0)).images, batch.images)


def test_halves_share_no_view():
    generator = torch.Generator().manual_seed(0)
    azimuth, elevation = 360 * torch.rand(1000, generator=generator) - 180, 90 * torch.rand(1000, generator=generator)
    model, judge = (in_half(azimuth, elevation, half) for half in ("model", "judge"))
    assert torch.equal(model, ~judge)
    assert 400 < model.sum() < 600
