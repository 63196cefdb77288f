"""Procedural scenes: a few coloured shapes on a grid, with exact ground truth for every task.

Two worlds, named by their grid. Both draw the same 16-pixel cells, and every cell starts at a
multiple of 8 pixels, so that a tokenizer with downsampling 8 sees the same patches in both:

    grid=2   32x32 pixels, 2x2 cells that touch
    grid=3   64x64 pixels, 3x3 cells with 8-pixel gaps

Pure NumPy and no system fonts: the same scene has the same pixels on every machine. What is said
about a scene (captions, questions, edits) is in `scene_text`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import combinations
from math import comb
from typing import TypeVar

import numpy as np

Value = TypeVar("Value")

CELL = 16  # pixels; at 10 and fewer, small shapes decode as circles (measured on 32x32, 3x3)
MAX_OBJECTS = 3  # per sampled scene; a `Scene` itself may fill its grid

SHAPES = ("circle", "square", "triangle", "cross", "ring")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
SIZES = {
    "small": 5,
    "large": 7,
}  # half the height of a shape, in pixels: keeps shapes furthest apart
COLOURS = {
    "red": (220, 20, 30),
    "green": (0, 150, 40),
    "blue": (20, 50, 240),
    "yellow": (255, 230, 0),
    "orange": (255, 125, 0),
    "purple": (125, 0, 150),
    "pink": (255, 80, 200),
    "cyan": (0, 220, 240),
}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (125, 125, 125),
    "beige": (225, 195, 150),
}
SIGN = ("blue", "white")  # letters and ground of words
PLACES = {
    2: ("top left", "top right", "bottom left", "bottom right"),
    3: (
        *("top left", "top", "top right"),
        *("left", "center", "right"),
        *("bottom left", "bottom", "bottom right"),
    ),
}

# Seven rows of five pixels per letter: one base-32 digit a row, leftmost pixel in the highest bit.
_FONT = dict(
    zip(
        LETTERS,
        (
            *("EHHVHHH", "UHHUHHU", "EHGGGHE", "UHHHHHU", "VGGUGGV", "VGGUGGG", "EHGNHHE"),
            *("HHHVHHH", "E44444E", "72222IC", "HIKOKIH", "GGGGGGV", "HRLLHHH", "HPPLJJH"),
            *("EHHHHHE", "UHHUGGG", "EHHHLID", "UHHUKIH", "FGGE11U", "V444444", "HHHHHHE"),
            *("HHHHHA4", "HHHLLRH", "HHA4AHH", "HHA4444", "V1248GV"),
        ),
    )
)


@dataclass(frozen=True)
class Layout:
    """Where the cells of a world lie: `grid` x `grid` cells, one every `pitch` pixels."""

    grid: int
    size: int  # pixels along one side of the picture
    pitch: int

    def corner(self, cell: int) -> tuple[int, int]:
        """Top left pixel (y, x) of a cell."""
        return cell // self.grid * self.pitch, cell % self.grid * self.pitch


LAYOUTS = {2: Layout(grid=2, size=32, pitch=16), 3: Layout(grid=3, size=64, pitch=24)}


@dataclass(frozen=True)
class Object:
    """One shape (or letter A-Z) in one cell; cells are numbered in raster order from 0."""

    shape: str
    colour: str
    size: str
    cell: int

    def __post_init__(self) -> None:
        if self.shape not in LETTERS:
            _require("shape", self.shape, SHAPES, " or a letter A-Z")
        _require("colour", self.colour, COLOURS)
        _require("size", self.size, SIZES)


@dataclass(frozen=True)
class Scene:
    """Objects in distinct cells of a `grid` x `grid` world; kept in raster order."""

    objects: tuple[Object, ...]
    background: str
    grid: int = 2

    def __post_init__(self) -> None:
        _require("grid", self.grid, LAYOUTS)
        _require("background", self.background, BACKGROUNDS)
        cells = [o.cell for o in self.objects]
        if outside := [cell for cell in cells if not 0 <= cell < self.grid**2]:
            raise ValueError(
                f"cell={outside[0]} is outside of grid={self.grid}; use 0 to {self.grid**2 - 1}"
            )
        if len(set(cells)) < len(cells):
            raise ValueError(f"cells={cells} repeat; put at most one object into a cell")
        object.__setattr__(self, "objects", tuple(sorted(self.objects, key=lambda o: o.cell)))

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.grid]

    @property
    def id(self) -> str:
        """The content as a name: equal scenes, and only those, have equal ids."""
        objects = [f"{o.cell}-{o.size}-{o.colour}-{o.shape}" for o in self.objects]
        return ".".join((f"scene{self.grid}", self.background, *objects))

    def place(self, o: Object) -> str:
        """Where an object is, in words."""
        return PLACES[self.grid][o.cell]


def sample_scenes(
    count: int, seed: int, grid: int = 2, letters: bool = False, start: int = 0
) -> Iterator[Scene]:
    """Yield `count` different scenes, those from number `start` on in an order given by `seed`.

    Scenes of one, two, ... `MAX_OBJECTS` objects take turns until the fewer ones have all been: at
    grid=2 there are only 1,280 scenes of one object. Any number costs the same: none is drawn to be
    skipped, none is remembered.
    """
    if start + count > (most := count_scenes(grid, letters) // 2):
        raise ValueError(f"count={start + count} is above {most}, half of all scenes; use fewer")
    for number in range(start, start + count):
        objects, rank = _take_turns(number, _count_by_objects(grid, letters))
        yield _unrank(objects, rank, seed, grid, letters)


def sample_words(count: int, seed: int, grid: int = 2, start: int = 0) -> Iterator[Scene]:
    """Yield scenes of words: one to `MAX_OBJECTS` large letters in raster order from the first cell
    on, in the colours of a road sign. Order, `start` and errors as in `sample_scenes`.
    """
    if start + count > (most := count_words() // 2):
        raise ValueError(f"count={start + count} is above {most}, half of all words; use fewer")
    colour, background = SIGN
    for number in range(start, start + count):
        length, rank = _take_turns(number, _count_by_length())
        rank = _shuffle(rank, len(LETTERS) ** length, seed)
        word = [LETTERS[rank // len(LETTERS) ** place % len(LETTERS)] for place in range(length)]
        letters = (Object(letter, colour, "large", cell) for cell, letter in enumerate(word))
        yield Scene(tuple(letters), background, grid)


def count_words() -> int:
    """How many different words of one to `MAX_OBJECTS` letters there are."""
    return sum(_count_by_length())


def count_scenes(grid: int = 2, letters: bool = False) -> int:
    """How many different scenes of one to `MAX_OBJECTS` objects there are."""
    return sum(_count_by_objects(grid, letters))


def render(scene: Scene) -> np.ndarray:
    """Draw a scene: uint8 [Y, X, 3]."""
    image = np.empty((scene.layout.size, scene.layout.size, 3), np.uint8)
    image[:] = BACKGROUNDS[scene.background]
    for o in scene.objects:
        y, x = scene.layout.corner(o.cell)
        image[y : y + CELL, x : x + CELL] = _patch(o.shape, o.size, o.colour, scene.background)
    return image


def render_batch(scenes: Sequence[Scene]) -> np.ndarray:
    """Draw scenes of one world: uint8 [B, Y, X, 3]."""
    return np.stack([render(scene) for scene in scenes])


def segmentation(scene: Scene) -> np.ndarray:
    """Which shape each pixel shows: uint8 [Y, X]; 0 background, then SHAPES, then LETTERS."""
    labels = np.zeros((scene.layout.size, scene.layout.size), np.uint8)
    for o in scene.objects:
        y, x = scene.layout.corner(o.cell)
        inside = shape_mask(o.shape, o.size) >= 0.5
        labels[y : y + CELL, x : x + CELL] = inside * (1 + (SHAPES + LETTERS).index(o.shape))
    return labels


def paint_labels(labels: np.ndarray) -> np.ndarray:
    """A label map uint8 [Y, X] as a picture uint8 [Y, X, 3]: every label its own colour.

    Label bits 0 and 3 set the red, 1 and 4 the green, 2 the blue.
    """
    low, high = labels[..., None] >> np.arange(3) & 1, labels[..., None] >> np.arange(3, 6) & 1
    return ((low * 2 + high) * 85).astype(np.uint8)


def edges(scene: Scene) -> np.ndarray:
    """Outlines in white on black, one pixel wide, inside the objects: uint8 [Y, X, 3]."""
    inside = np.pad(segmentation(scene) > 0, 1)
    core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    outline = inside[1:-1, 1:-1] & ~core
    return np.repeat(outline[..., None] * np.uint8(255), 3, axis=-1)


def boxes(scene: Scene) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Each object's name and the pixels (x0, y0, x1, y1) that it touches; x1 and y1 exclusive."""
    found = []
    for o in scene.objects:
        top, left = scene.layout.corner(o.cell)
        ys, xs = np.nonzero(shape_mask(o.shape, o.size))
        corners = (left + xs.min(), top + ys.min(), left + xs.max() + 1, top + ys.max() + 1)
        x0, y0, x1, y1 = map(int, corners)
        found.append((f"{o.colour} {noun(o.shape)}", (x0, y0, x1, y1)))
    return found


def noun(shape: str) -> str:
    """A shape in words: 'circle', 'letter A'."""
    return f"letter {shape}" if shape in LETTERS else shape


def pick(rng: np.random.Generator, values: Sequence[Value]) -> Value:
    """Draw one of the values, all equally likely."""
    return values[int(rng.integers(len(values)))]


@cache
def shape_mask(shape: str, size: str) -> np.ndarray:
    """How much of each pixel a shape covers: float32 [CELL, CELL] in 0..1, read-only."""
    if shape in LETTERS:
        mask = _letter(shape, scale=2 if size == "large" else 1)
    else:
        # 8x8 samples per pixel, in units of the shape's half height, around the cell's centre.
        points = ((np.arange(CELL * 8) + 0.5) / 8 - CELL / 2) / SIZES[size]
        y, x = points[:, None], points[None, :]
        mask = _inside(shape, y, x).reshape(CELL, 8, CELL, 8).mean((1, 3))
    mask = mask.astype(np.float32)
    mask.setflags(write=False)
    return mask


def _count_by_length() -> list[int]:
    return [len(LETTERS) ** length for length in range(1, MAX_OBJECTS + 1)]


@cache
def _count_by_objects(grid: int, letters: bool) -> tuple[int, ...]:
    """Different scenes of one object, of two, ...: more of each than of the one before."""
    _require("grid", grid, LAYOUTS)
    kinds = len(SHAPES + LETTERS if letters else SHAPES) * len(COLOURS) * len(SIZES)
    counts = range(1, MAX_OBJECTS + 1)
    return tuple(len(BACKGROUNDS) * comb(grid**2, n) * kinds**n for n in counts)


def _take_turns(number: int, sizes: Sequence[int]) -> tuple[int, int]:
    """Which of some growing collections is taken from at that number, and which rank of it."""
    taken = 0  # from each that is left
    for first, size in enumerate(sizes):
        left = len(sizes) - first
        if number < (size - taken) * left:
            return first + 1 + number % left, taken + number // left
        number, taken = number - (size - taken) * left, size
    raise IndexError(f"number {number} is beyond all of them")


def _unrank(objects: int, rank: int, seed: int, grid: int, letters: bool) -> Scene:
    """The scene of that rank among all that have as many objects; every rank has another one."""
    number = _shuffle(rank, _count_by_objects(grid, letters)[objects - 1], seed)

    def choose(values: Sequence[Value]) -> Value:
        nonlocal number
        number, which = divmod(number, len(values))
        return values[which]

    background = choose(tuple(BACKGROUNDS))
    shapes, colours, sizes = SHAPES + LETTERS if letters else SHAPES, tuple(COLOURS), tuple(SIZES)
    cells = choose(tuple(combinations(range(grid**2), objects)))
    made = (Object(choose(shapes), choose(colours), choose(sizes), cell) for cell in cells)
    return Scene(tuple(made), background, grid)


def _shuffle(number: int, size: int, seed: int) -> int:
    """Where `number` stands in an order of range(size) given by `seed`.

    A Feistel network permutes a range of 2^(2 bits) >= size; what falls outside goes through again
    until it falls inside, so that this too is a permutation.
    """
    bits = (size.bit_length() + 1) // 2
    mask = (1 << bits) - 1
    while True:
        left, right = number >> bits, number & mask
        for turn in range(4):
            mixed = blake2b(f"{seed} {size} {turn} {right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(mixed, "big") & mask)
        number = left << bits | right
        if number < size:
            return number


def _inside(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Whether points [Y, 1], [1, X] lie in a shape of half height 1: bool [Y, X]."""
    box = np.maximum(abs(x), abs(y)) <= 1
    square_radius = x * x + y * y
    match shape:
        case "circle":
            return square_radius <= 1
        case "square":
            return box
        case "triangle":
            return box & (2 * abs(x) <= y + 1)
        case "cross":
            return box & (np.minimum(abs(x), abs(y)) <= 0.26)
        case "ring":
            return (square_radius <= 1) & (square_radius >= 0.36)
    raise ValueError(f"shape={shape!r} has no outline; use one of {', '.join(SHAPES)}")


def _letter(letter: str, scale: int) -> np.ndarray:
    """A letter of 5x7 dots, each `scale` pixels wide, in the middle of its cell."""
    rows = np.array([int(digit, 32) for digit in _FONT[letter]])
    dots = (rows[:, None] >> np.arange(4, -1, -1)) & 1
    mask = np.zeros((CELL, CELL))
    top, left = (CELL - 7 * scale) // 2, (CELL - 5 * scale) // 2
    mask[top : top + 7 * scale, left : left + 5 * scale] = np.kron(dots, np.ones((scale, scale)))
    return mask


@cache
def _patch(shape: str, size: str, colour: str, background: str) -> np.ndarray:
    """The pixels of an object's cell: uint8 [CELL, CELL, 3]."""
    ground, paint = np.array(BACKGROUNDS[background]), np.array(COLOURS[colour])
    return np.rint(ground + shape_mask(shape, size)[..., None] * (paint - ground)).astype(np.uint8)


def _require(field: str, value: object, allowed: Iterable[object], more: str = "") -> None:
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(
            f"{field}={value!r} is unknown; use one of {', '.join(map(str, allowed))}{more}"
        )
