"""The vocabulary of the built-in model: the words in captions of rendered scenes."""

__all__ = ["FAINT_WORDS", "FUNCTION_WORDS", "LAYOUT_WORDS", "SCENE_WORDS", "SUBJECTS"]

_WORDS = """
    a above across afternoon air an and animation ascend ascending ascends at ball
    balloon balloons balls big bird birds black blue boat boats bounce bounces bouncing
    buildings by calm car cars city clear climb climbing climbs clouds cloudy country
    crimson cruise cruises cruising dawn day daybreak daylight drift drifting drifts
    drive drives driving during dusk early evening falling field fields flies float
    floating floats fly flying from front gentle glide glides gliding glow go goes going
    grassland green head heading heads higher hills hilly hop hopping hops hot
    illustration in into is it jump jumping jumps lantern lanterns left leftward
    leftwards meadow midday midnight moonlight morning mountain mountains move moves
    moving near night nightfall noon ocean of on one open orange over pair paper past
    peaks picture pink pouring purple rain rains rainy range red right rightward
    rightwards rise rises rising rocky roll rolling rolls rubber sail sailing sails sea
    seagull seagulls ship ships single sky skyline skyscrapers snow snowfall snows snowy
    soar soaring soars speed speeding speeds stars sun sundown sunny sunrise sunset tall
    that the there three through to towards town toy twilight two under up upward
    upwards video violet water waves weather while white winter with yellow
"""

LAYOUT_WORDS = (
    ("sky1", "sky2", "sky3"),
    ("land1", "land2", "land3"),
    ("way1", "way2", "way3"),
)
"""Layout words for sky, land and the path of the object; every caption contains one of
each group."""

SCENE_WORDS = (*_WORDS.split(), *(word for group in LAYOUT_WORDS for word in group))
"""Lower-case words, in the order of the prompt encoder's table."""

_FUNCTION_WORDS = """
    a across an and animation at by during from illustration in into is it of on one
    over past picture that the there through to towards two under video while with
"""

FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
"""Known words that name neither a thing nor its colour, time, place or motion."""

FAINT_WORDS = frozenset(("pouring", "rain", "rains", "rainy", "stars"))
"""Known words for what is too fine to be drawn."""

SUBJECTS = {
    "balloon": "balloon",
    "balloons": "balloon",
    "ball": "ball",
    "balls": "ball",
    "bird": "bird",
    "birds": "bird",
    "seagull": "bird",
    "seagulls": "bird",
    "boat": "boat",
    "boats": "boat",
    "ship": "boat",
    "ships": "boat",
    "car": "car",
    "cars": "car",
    "lantern": "lantern",
    "lanterns": "lantern",
}
"""Words for moving things, and the thing itself; a scene has one kind."""
