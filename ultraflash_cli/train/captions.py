"""Captions of scenes in many wordings; some leave out attributes that are the default."""

import re
from dataclasses import dataclass
from random import Random

import numpy as np

from ultraflash_cli.engine.vocabulary import FUNCTION_WORDS, LAYOUT_WORDS, SCENE_WORDS
from ultraflash_cli.train.scenes import Colour, Kind, Motion, Place, Scene, Thing, Time, Weather

__all__ = ["LONGEST_CAPTION", "Usual", "caption", "scrambled"]

_TIME_WORDS: dict[Time, tuple[str, ...]] = {
    "morning": ("in the morning", "at sunrise", "at dawn", "in the early morning", "at daybreak"),
    "day": ("at noon", "at midday", "in daylight", "by day", "during the day", "in the afternoon"),
    "sunset": ("at sunset", "at sunset", "in the evening", "at sundown", "in the glow of sunset", "in the evening sun"),
    "dusk": ("at dusk", "at dusk", "at twilight", "in the twilight", "at nightfall"),
    "night": ("at night", "at night", "by night", "at midnight", "by moonlight", "under the stars"),
}
_WEATHER_WORDS: dict[Weather, tuple[str, ...]] = {
    "clear": ("with a clear sky", "under a clear sky", "in clear weather"),
    "clouds": ("with clouds", "under clouds", "under a cloudy sky", "in cloudy weather"),
    "rain": ("in the rain", "while it rains", "in rainy weather", "in pouring rain", "with rain"),
    "snow": ("in falling snow", "while it snows", "in winter", "during snowfall", "in the snow"),
}
_DAYS: dict[Weather, str] = {"clear": "clear", "clouds": "cloudy", "rain": "rainy", "snow": "winter"}
"""Adjectives to combine with `_HOURS`, as in "on a rainy night"."""
_HOURS: dict[Time, tuple[str, ...]] = {
    "morning": ("morning",),
    "day": ("day", "afternoon"),
    "sunset": ("evening",),
    "dusk": ("dusk",),
    "night": ("night",),
}
_PLACE_WORDS: dict[Place, tuple[str, ...]] = {
    "sea": ("the sea", "the sea", "the ocean", "the waves", "open water", "a calm sea"),
    "hills": ("hills", "gentle hills", "the hills", "hilly country"),
    "mountains": ("mountains", "a mountain range", "rocky mountains", "the mountains", "rocky peaks"),
    "snowy mountains": ("snowy mountains", "the snowy mountains", "snowy peaks", "a snowy mountain range"),
    "city": ("a city", "the city", "a city skyline", "tall buildings", "a big town", "skyscrapers"),
    "field": ("a field", "a meadow", "the fields", "grassland", "open fields"),
}
_KIND_WORDS: dict[Kind, tuple[tuple[str, str], ...]] = {
    "balloon": (("balloon", "balloons"), ("balloon", "balloons"), ("hot-air balloon", "hot-air balloons")),
    "bird": (("bird", "birds"), ("bird", "birds"), ("seagull", "seagulls")),
    "boat": (("boat", "boats"), ("boat", "boats"), ("sailing boat", "sailing boats"), ("ship", "ships")),
    "ball": (("ball", "balls"), ("ball", "balls"), ("rubber ball", "rubber balls")),
    "car": (("car", "cars"), ("car", "cars"), ("toy car", "toy cars")),
    "lantern": (("lantern", "lanterns"), ("paper lantern", "paper lanterns"), ("sky lantern", "sky lanterns")),
}
_COLOUR_WORDS: dict[Colour, str] = {"red": "crimson", "purple": "violet"}
"""Synonyms that replace some colour words."""
_VERBS: dict[Kind, tuple[tuple[str, str, str], ...]] = {
    "balloon": (
        ("drifting", "drifts", "drift"),
        ("floating", "floats", "float"),
        ("flying", "flies", "fly"),
        ("gliding", "glides", "glide"),
    ),
    "bird": (
        ("flying", "flies", "fly"),
        ("flying", "flies", "fly"),
        ("gliding", "glides", "glide"),
        ("soaring", "soars", "soar"),
    ),
    "boat": (
        ("sailing", "sails", "sail"),
        ("sailing", "sails", "sail"),
        ("gliding", "glides", "glide"),
        ("cruising", "cruises", "cruise"),
    ),
    "ball": (
        ("bouncing", "bounces", "bounce"),
        ("rolling", "rolls", "roll"),
        ("hopping", "hops", "hop"),
        ("jumping", "jumps", "jump"),
    ),
    "car": (
        ("driving", "drives", "drive"),
        ("driving", "drives", "drive"),
        ("speeding", "speeds", "speed"),
        ("rolling", "rolls", "roll"),
    ),
    "lantern": (
        ("floating", "floats", "float"),
        ("floating", "floats", "float"),
        ("drifting", "drifts", "drift"),
        ("flying", "flies", "fly"),
    ),
}
"""Verb forms for each kind of thing: "a bird flying", "it flies", "they fly"."""
_GO = (("moving", "moves", "move"), ("going", "goes", "go"), ("heading", "heads", "head"))
_RISE = (("rising", "rises", "rise"), ("ascending", "ascends", "ascend"), ("climbing", "climbs", "climb"))
_ASIDE: dict[Motion, tuple[str, ...]] = {
    "left": ("to the left", "to the left", "left", "leftwards", "leftward", "towards the left", "from right to left"),
    "right": (
        *("to the right", "to the right", "right", "rightwards", "rightward", "towards the right"),
        "from left to right",
    ),
    "up": ("up", "upwards", "upward", "up into the sky", "higher and higher"),
}
_OVER: dict[Kind, tuple[str, ...]] = {
    "balloon": ("over", "above"),
    "bird": ("over", "above"),
    "lantern": ("over", "above"),
    "boat": ("on", "across"),
    "ball": ("in front of", "near"),
    "car": ("past", "in front of"),
}
_THROUGH: dict[Place, tuple[str, ...]] = {"field": ("across", "through"), "hills": ("through", "across"), "city": ()}
"""Prepositions for the land around balls and cars."""
_COUNTS = {1: ("a", "a", "a", "one", "a single"), 2: ("two", "two", "a pair of"), 3: ("three",)}
_OPENINGS = ("a picture of", "an illustration of", "a video of", "an animation of", "there is")

_SILENT_TIME, _SILENT_PLACE, _SILENT_WEATHER = 0.10, 0.08, 0.12
"""Probabilities that a caption leaves out time, place and weather; a clear sky is
usually left out."""
_SAID_CLEAR, _SAID_ASIDE, _SAID_UP = 0.25, 0.80, 0.95
_SILENT_USUAL = 0.4
"""Fraction of captions that leave out the obvious."""

_KEPT, _ADDED = 0.8, 4
"""Share of function words that scrambling keeps, and the most it adds."""

LONGEST_CAPTION = 22
"""Maximum number of words in a caption, as the built-in prompt encoder counts them; it
reads a few more."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Usual:
    """Usual properties, which a caption may leave out; everything else is stated."""

    time: Time
    place: Place
    colour: Colour
    motion: Motion

    def silences(self, scene: Scene) -> "_Silences":
        """Return the probability of leaving out each property of this scene; the usual
        weather is clear."""
        thing = scene.thing
        moves_so = thing is not None and thing.motion == self.motion
        looks_so = thing is not None and thing.colour == self.colour
        return _Silences(
            time=_SILENT_USUAL * (scene.time == self.time),
            place=_SILENT_USUAL * (scene.place == self.place),
            weather=(1 - _SAID_CLEAR) * (scene.weather == "clear"),
            motion=_SILENT_USUAL * moves_so,
            colour=_SILENT_USUAL * looks_so,
        )


@dataclass(frozen=True)
class _Silences:
    """Probability that a caption leaves out each property."""

    time: float
    place: float
    weather: float
    motion: float
    colour: float


def _silences(scene: Scene) -> _Silences:
    """Return the probability of leaving out each property if none is usual."""
    rises = scene.thing is not None and scene.thing.motion == "up"
    return _Silences(
        time=_SILENT_TIME,
        place=_SILENT_PLACE,
        weather=1 - _SAID_CLEAR if scene.weather == "clear" else _SILENT_WEATHER,
        motion=1 - (_SAID_UP if rises else _SAID_ASIDE),
        colour=0.0,
    )


def caption(scene: Scene, wording: int = 0, *, usual: Usual | None = None) -> str:
    """Return a caption of a scene; ``wording`` chooses among captions with the same
    meaning.

    Captions always state the colour and mostly everything else, in at most
    `LONGEST_CAPTION` words; with ``usual``, they always state whatever is unusual. No
    word has two meanings: "snow" is the weather, "snowy" describes mountains.
    """
    rng = Random(f"{scene.seed}/{wording}")
    silences = usual.silences(scene) if usual else _silences(scene)
    while len(_WORD.findall(said := _say(scene, silences, rng))) > LONGEST_CAPTION:
        pass
    return said


def scrambled(words: str, rng: np.random.Generator) -> str:
    """Return a caption with its words in a different order and some function words missing or added.

    Users word prompts as no caption does, but the words that count are the same. Layout words stay at the end, and a
    caption with two directions ("from left to right") is returned unchanged.
    """
    layout = {word for group in LAYOUT_WORDS for word in group}
    said = [word for word in words.split() if word not in layout]
    if {"left", "right"} <= set(said):
        return words
    function_words = sorted(FUNCTION_WORDS & set(SCENE_WORDS))
    kept = [word for word in said if word not in FUNCTION_WORDS or rng.random() < _KEPT]
    for _ in range(int(rng.integers(_ADDED + 1))):
        kept.insert(int(rng.integers(len(kept) + 1)), function_words[rng.integers(len(function_words))])
    start = int(rng.integers(len(kept) + 1))
    turned = kept[start:] + kept[:start]
    mixed = [turned[i] for i in rng.permutation(len(turned))] if rng.random() < 0.5 else turned
    return " ".join([*mixed, *(word for word in words.split() if word in layout)])


def _say(scene: Scene, silences: _Silences, rng: Random) -> str:
    where = rng.choice(_PLACE_WORDS[scene.place])
    around = _around(scene, silences, rng)
    if scene.thing is None:
        return _empty(where, around, rng)

    thing = scene.thing
    placed = rng.random() >= silences.place
    if rng.random() < 0.18:
        return _keywords(thing, where if placed else "", around, silences, rng)

    through = _THROUGH.get(scene.place, ()) if thing.kind in ("ball", "car") else ()
    over = rng.choice((*_OVER[thing.kind], *through)) + " " + where if placed else ""
    noun = _noun(thing, silences, rng)
    doing, does = _doing(thing, silences, rng)
    match rng.choice(("doing", "doing", "doing", "does", "does", "first", "first", "place", "with", "opening", "that")):
        case "doing":
            said = [noun, doing, over, *around]
        case "does":
            said = [noun, does, over, *around]
        case "first" if around:
            said = [*around[:-1], around[-1] + ",", noun, rng.choice((does, doing)), over]
        case "place" if over:
            said = [over, *around[:-1], *(each + "," for each in around[-1:]), noun, doing]
        case "with" if over:
            said = [where, *around, "with", noun, doing]
        case "that":
            said = [noun, "that", does, over, *around]
        case _:
            said = [rng.choice(_OPENINGS), noun, doing, over, *around]
    return " ".join(words for words in said if words)


def _around(scene: Scene, silences: _Silences, rng: Random) -> list[str]:
    """Return the phrases for time and weather that are not left out, in random
    order."""
    timed, weathered = rng.random() >= silences.time, rng.random() >= silences.weather
    if timed and weathered and rng.random() < 0.3:
        sunny = (scene.weather, scene.time) == ("clear", "day") and rng.random() < 0.5
        return [f"on a {'sunny' if sunny else _DAYS[scene.weather]} {rng.choice(_HOURS[scene.time])}"]
    around = [rng.choice(_TIME_WORDS[scene.time])] if timed else []
    around += [rng.choice(_WEATHER_WORDS[scene.weather])] if weathered else []
    if rng.random() < 0.3:
        around.reverse()
    return around


def _empty(where: str, around: list[str], rng: Random) -> str:
    """Return the caption of a scene without a thing."""
    form = rng.choice(("plain", "plain", "first", "opening", "keywords"))
    if form == "keywords":
        return ", ".join(map(_bare, [where, *around]))
    if form == "first" and around:
        return f"{' '.join(around)}, {where}"
    opening = [rng.choice(_OPENINGS)] if form == "opening" else []
    return " ".join([*opening, where, *around])


def _keywords(thing: Thing, where: str, around: list[str], silences: _Silences, rng: Random) -> str:
    """Describe a scene as a list of keywords, the way people type into search boxes."""
    said = [_noun(thing, silences, rng), where, *around]
    doing = rng.random() < 0.6
    direction = _doing(thing, silences, rng)[0] if doing else _direction(thing, silences, rng)
    said.append(direction)
    said = [_bare(each) for each in said if each]
    if rng.random() < 0.5:
        rng.shuffle(said)
    return rng.choice((", ", ", ", " ")).join(said)


def _bare(phrase: str) -> str:
    """Return a phrase without its leading prepositions and articles."""
    words = phrase.split()
    while len(words) > 1 and words[0] in ("a", "the", "at", "in", "on", "by", "with", "under", "while", "it", "during"):
        words = words[1:]
    return " ".join(words)


def _noun(thing: Thing, silences: _Silences, rng: Random) -> str:
    """Return the noun phrase: count, colour and kind."""
    one, many = rng.choice(_KIND_WORDS[thing.kind])
    colour = _COLOUR_WORDS.get(thing.colour, thing.colour) if rng.random() < 0.12 else thing.colour
    article = rng.choice(_COUNTS[thing.count])
    noun = one if thing.count == 1 else many
    if rng.random() >= silences.colour:
        noun = f"{colour} {noun}"
    if article == "a" and noun[0] in "aeiou":
        article = "an"
    return f"{article} {noun}"


def _direction(thing: Thing, silences: _Silences, rng: Random) -> str:
    """Return the direction of a thing; empty if the caption leaves it out."""
    return rng.choice(_ASIDE[thing.motion]) if rng.random() >= silences.motion else ""


def _doing(thing: Thing, silences: _Silences, rng: Random) -> tuple[str, str]:
    """Return verb and direction in two forms, such as "drifting left" and "drifts
    left"."""
    direction = _direction(thing, silences, rng)
    verbs = _VERBS[thing.kind]
    if direction and rng.random() < 0.25:
        verbs = _GO
    if direction and thing.motion == "up" and rng.random() < 0.5:
        verbs, direction = _RISE, direction if rng.random() < 0.4 else ""
    doing, does, do = rng.choice(verbs)
    return f"{doing} {direction}".strip(), f"{does if thing.count == 1 else do} {direction}".strip()
