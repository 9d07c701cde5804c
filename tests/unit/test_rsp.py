"""gdb's remote protocol as bytes: what arrives in whatever pieces, and what is no protocol at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvd.debug.rsp import MOST_BYTES, Interrupt, Link, escape, frame, hex_bytes, number, unescape


def packet(payload: bytes) -> bytes:
    return b"$%s#%02x" % (payload, sum(payload) & 0xFF)


def test_a_packet_is_acknowledged() -> None:
    link = Link()
    assert link.feed(b"+$qC#b4") == [b"qC"]
    assert link.to_send == b"+"


def test_an_answer_is_framed_and_repeated_when_gdb_did_not_understand() -> None:
    link = Link()
    link.send(b"OK")
    assert link.to_send == b"$OK#9a"
    link.feed(b"-")
    assert link.to_send == b"$OK#9a" * 2


def test_asking_for_repetition_does_not_multiply() -> None:
    link = Link()
    link.send(b"x" * 1000)
    link.to_send.clear()
    link.feed(b"-" * 100000)
    assert len(link.to_send) == 1004


def test_a_wrong_checksum_is_asked_for_again() -> None:
    link = Link()
    assert link.feed(b"$qC#b5$qC#zz$qC#b4") == [b"qC"]
    assert link.to_send == b"--+"


def test_without_acknowledgements_nothing_is_said() -> None:
    link = Link()
    link.acknowledges = False
    assert link.feed(b"$qC#00-+") == [b"qC"]
    assert link.to_send == b""


def test_interrupts_stand_between_packets_and_are_data_within() -> None:
    link = Link()
    assert link.feed(b"\x03" + packet(b"X0,1:\x03") + b"\x03") == [
        Interrupt.INTERRUPT,
        b"X0,1:\x03",
        Interrupt.INTERRUPT,
    ]


def test_a_packet_that_begins_anew_drops_the_one_before() -> None:
    assert Link().feed(b"$m123$g#67") == [b"g"]


def test_a_packet_that_is_too_long_is_cut_and_answered_as_unknown() -> None:
    link = Link()
    assert link.feed(b"$" + b"x" * (MOST_BYTES + 1)) == []
    assert link.feed(b"y" * 5 * MOST_BYTES) == []
    assert link.feed(b"#00$qC#b4") == [b"", b"qC"]
    assert link.to_send == b"++"
    assert link.feed(packet(b"x" * MOST_BYTES)) == [b"x" * MOST_BYTES]


@given(st.binary(max_size=300))
def test_escaping_is_reversible_and_leaves_nothing_special(data: bytes) -> None:
    escaped = escape(data)
    assert unescape(escaped) == data
    assert not set(escaped) & set(b"#$*")
    link = Link()
    assert link.feed(frame(data)) == [data]


@given(st.lists(st.binary(max_size=60), max_size=8), st.lists(st.integers(1, 50)))
def test_packets_arrive_in_any_pieces(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    link, events = Link(), []
    for cut in cuts:
        events += link.feed(stream[:cut])
        stream = stream[cut:]
    assert events + link.feed(stream) == payloads
    assert link.to_send == b"+" * len(payloads)


@given(
    st.lists(
        st.binary(max_size=200) | st.sampled_from([b"$", b"#", b"}", b"\x03", b"-", b"$g#67", b"$#00"]), max_size=30
    )
)
def test_garbage_raises_nothing_and_is_bounded(pieces: list[bytes]) -> None:
    link = Link()
    fed = 0
    for piece in pieces:
        fed += len(piece)
        for event in link.feed(piece):
            assert event is Interrupt.INTERRUPT or len(event) <= fed
    assert len(link.to_send) <= fed
    # It is understood again behind any of it: '#' and two digits end whatever was open.
    link.feed(b"#00")
    assert link.feed(packet(b"qC"))[-1] == b"qC"


@given(st.binary(max_size=20))
def test_numbers_and_pairs_are_hexadecimal_or_refused(text: bytes) -> None:
    for parse in (number, hex_bytes):
        try:
            parse(text)
        except ValueError:
            continue
        assert all(byte in b"0123456789abcdefABCDEF" for byte in text)


def test_a_number_has_64_bits_at_most() -> None:
    assert number(b"ffffffffffffffff") == (1 << 64) - 1
    for wrong in (b"", b"10000000000000000", b"0x1", b"-1", b"1_0", b" 1"):
        with pytest.raises(ValueError):
            number(wrong)
