"""Ways in which any file is damaged."""

from hypothesis import strategies as st


@st.composite
def damaged(draw, good):
    """Bytes cut off, flipped, removed, repeated, put in, or replaced by larger numbers."""
    data = draw(good)
    for _ in range(draw(st.integers(1, 3))):
        data = _damage(draw, data)
    return data


def _damage(draw, data):
    start = draw(st.integers(0, max(0, len(data) - 1)))
    stop = start + draw(st.integers(1, 16))
    kind = draw(st.sampled_from(["cut", "flip", "remove", "repeat", "insert", "fill", "head"]))
    if kind == "cut":
        return data[:start]
    if kind == "flip":
        bit = 1 << draw(st.integers(0, 7))
        return (
            data[:start]
            + bytes(byte ^ bit for byte in data[start : start + 1])
            + data[start + 1 :]
        )
    if kind == "remove":
        return data[:start] + data[stop:]
    if kind == "repeat":
        return data[:stop] + data[start:]
    if kind == "insert":
        return data[:start] + draw(st.binary(max_size=8)) + data[start:]
    if kind == "fill":
        return (
            data[:start] + draw(st.sampled_from([b"\xff", b"\0", b"\x7f"])) * 4 + data[start + 4 :]
        )
    return draw(st.binary(max_size=16)) + data[start:]
