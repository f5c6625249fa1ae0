# SPDX-License-Identifier: Apache-2.0
"""Arrays of any shape, type and values, and options of any value, give a correct result or are refused on purpose."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from transformers import AutoProcessor

import transformers_videollama  # noqa: F401

from ..helpers import TINY
from .checks import TRIED, check, check_same, check_sounds, check_tensor, check_videos, is_refusal, outcome
from .profiles import tries


SIZE = (28, 28)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(TINY)


def attempt(name: str, call, verify, processor=None) -> None:
    """Calls twice, checks what comes, and counts it."""
    error = None
    try:
        first = call()
    except Exception as raised:
        error = raised
    TRIED[name, outcome(error)] += 1
    if error is None:
        verify(first)
        check_same(first, call())
    elif not is_refusal(error):
        raise error


def arrays(shapes) -> st.SearchStrategy:
    """Of any type and any values; as numpy's or torch's."""
    dtypes = st.sampled_from(["u1", "u1", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f4", "f8", "?", "c8"])
    # One value everywhere, and others in a few places: all at random would take long and find no more
    fill = st.one_of(st.just(0), st.just(1), st.none())

    @st.composite
    def strategy(draw):
        dtype, shape = np.dtype(draw(dtypes)), draw(shapes)
        values = npst.from_dtype(dtype)
        array = draw(
            npst.arrays(dtype, shape, elements=values, fill=values if draw(fill) is None else st.just(dtype.type(1)))
        )
        if draw(st.integers(0, 3)) == 0 and dtype.kind in "uifc?" and dtype != np.dtype("?"):
            return torch.from_numpy(array.copy())
        return array[::-1] if array.ndim and draw(st.integers(0, 5)) == 0 else array

    return strategy()


LENGTH = st.sampled_from([0, 1, 2, 3, 4, 5, 9, 28, 33])
COLOURS = st.sampled_from([1, 3, 3, 3, 4])
FRAME = st.one_of(
    st.tuples(LENGTH, LENGTH, COLOURS), st.tuples(COLOURS, LENGTH, LENGTH), st.lists(LENGTH, max_size=3).map(tuple)
)
VIDEO = st.one_of(
    st.tuples(LENGTH, FRAME).map(lambda pair: (pair[0], *pair[1])), st.lists(LENGTH, max_size=5).map(tuple)
)
MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "LA", "PA"]


@st.composite
def pictures(draw) -> Image.Image:
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    return Image.new(draw(st.sampled_from(MODES)), size, draw(st.integers(0, 1)))


# What is no picture, video or sound at all
JUNK = st.one_of(
    st.none(), st.integers(), st.floats(), st.booleans(), st.just({}), st.just(object()), st.just([]), st.just([[]])
)
FRAMES = st.one_of(pictures(), arrays(FRAME))
GOOD_VIDEO = st.tuples(st.integers(1, 12), st.integers(1, 33), st.integers(1, 33)).flatmap(
    lambda shape: st.one_of(
        npst.arrays(st.sampled_from([np.uint8, np.int32, np.float32]), (*shape, 3), elements=st.integers(0, 255)),
        npst.arrays(np.uint8, (shape[0], 3, *shape[1:])).map(torch.from_numpy),
        st.just([Image.new("RGB", shape[1:])] * shape[0]),
    )
)
ONE_VIDEO = st.one_of(GOOD_VIDEO, GOOD_VIDEO, GOOD_VIDEO, arrays(VIDEO), st.lists(FRAMES, max_size=4), JUNK)
COUNT = st.one_of(st.integers(1, 40), st.integers(1, 12), st.integers(-2, 0), st.none())
RATE = st.one_of(
    st.floats(0.1, 60), st.sampled_from([1, 30, 29.97, 0, -1.0, math.nan, math.inf, 1e-300, 1e300]), st.none()
)
WRONG = st.sampled_from(["8", [8], True, 10**30, 2.5, {}])
METADATA = st.one_of(
    st.none(),
    JUNK,
    st.fixed_dictionaries(
        {"total_num_frames": COUNT},
        optional={"fps": RATE, "frames_indices": st.lists(st.integers(-1, 40), max_size=5)},
    ),
)
VIDEO_OPTIONS = {
    "num_frames": COUNT,
    "fps": RATE,
    "sampling": st.sampled_from(["uniform", "headtail", None]),
    "seed": st.one_of(st.integers(0, 9), st.sampled_from([-1, 2**70]), st.none()),
    "do_sample_frames": st.booleans(),
    "do_rescale": st.booleans(),
    "video_metadata": st.one_of(METADATA, st.lists(METADATA, max_size=3)),
    "input_data_format": st.sampled_from(["channels_first", "channels_last", None]),
}
WRONG_OPTIONS = st.sampled_from([*VIDEO_OPTIONS, "size", "return_tensors", "no_such_option"]).flatmap(
    lambda name: WRONG.map(lambda value: {name: value})
)
OPTIONS = st.one_of(*[st.fixed_dictionaries({}, optional=VIDEO_OPTIONS)] * 5, WRONG_OPTIONS)


@tries(ci=150, long=2000)
@given(videos=st.one_of(ONE_VIDEO, st.lists(ONE_VIDEO, max_size=3)), options=OPTIONS)
def test_videos(videos, options, processor):
    np.random.seed(0)

    def call():
        np.random.seed(0)  # "headtail" without a seed
        return processor.video_processor(videos, **{"return_tensors": "pt", "return_metadata": True, **options})

    def verify(inputs):
        num_frames = options.get("num_frames") if options.get("do_sample_frames", True) else None
        is_limit = isinstance(num_frames, int) and not isinstance(num_frames, bool)
        check_videos(
            {name: value for name, value in inputs.items() if name != "video_metadata"},
            SIZE,
            num_frames if is_limit else None,
        )
        check(len(inputs["video_metadata"]) == len(inputs["pixel_values_videos"]), "one metadata per video")

    attempt("videos as arrays", call, verify)


@tries(ci=100, long=1200)
@given(images=st.one_of(FRAMES, st.lists(FRAMES, max_size=3), JUNK))
def test_pictures(images, processor):
    attempt(
        "pictures as arrays",
        lambda: processor.image_processor(images, return_tensors="pt"),
        lambda inputs: check_tensor(inputs["pixel_values"], (None, 3, *SIZE), "pixel_values"),
    )


SAMPLES = st.sampled_from([0, 1, 2, 399, 400, 401, 3200, 33000])
SOUND = st.one_of(
    arrays(
        st.one_of(
            SAMPLES.map(lambda n: (n,)), st.tuples(st.integers(0, 3), SAMPLES), st.lists(LENGTH, max_size=4).map(tuple)
        )
    ),
    st.lists(st.floats(-1, 1), max_size=5),
    st.fixed_dictionaries(
        {
            "array": arrays(SAMPLES.map(lambda n: (n,))),
            "sampling_rate": st.sampled_from([8000, 16000, 44100, 0, -1, None, "x"]),
        }
    ),
    JUNK,
)


GOOD_SOUND = st.one_of(
    npst.arrays(
        np.float32, st.integers(400, 4000), elements=st.floats(-1, 1, width=32), fill=st.floats(-1, 1, width=32)
    ),
    st.integers(400, 80_000).map(lambda n: torch.linspace(-1, 1, 2 * n).reshape(2, n)),
)
SOUND = st.one_of(GOOD_SOUND, GOOD_SOUND, SOUND)


@tries(ci=60, long=900)
@given(
    sounds=st.one_of(SOUND, st.lists(SOUND, max_size=3)),
    sampling_rate=st.sampled_from([16000, 16000, 16000, None, 8000, "x"]),
)
def test_sounds(sounds, sampling_rate, processor):
    extractor = processor.feature_extractor
    attempt(
        "sounds as arrays",
        lambda: extractor(sounds, sampling_rate=sampling_rate, return_tensors="pt"),
        lambda inputs: check_sounds(inputs, extractor.num_mel_bins, extractor.num_mel_frames),
    )
