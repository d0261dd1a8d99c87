"""The buffer on disk: bounded, exact about what it gives up, and never confused by a process that died."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latebind.device.spool import Spool
from latebind.errors import Closed


def payloads(spool: Spool) -> list[bytes]:
    return [record.payload for record in spool.peek(10_000)]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.seg"))


def test_records_come_back_in_order_and_survive_the_process(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1 << 20)
    for number in range(100):
        spool.append(b"record %d" % number)
    assert payloads(spool) == [b"record %d" % number for number in range(100)]
    spool.acknowledge(spool.peek(40)[-1])
    spool.close()
    again = Spool(tmp_path, max_bytes=1 << 20)
    assert payloads(again) == [b"record %d" % number for number in range(40, 100)]
    again.append(b"more")
    assert payloads(again)[-2:] == [b"record 99", b"more"]
    again.close()


def test_what_was_acknowledged_takes_no_room_for_ever(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=64 << 10)
    for number in range(600):
        spool.append(bytes(300), weight=1)
        if number % 3 == 0:
            spool.acknowledge(spool.peek(10)[-1])
    while records := spool.peek(100):
        spool.acknowledge(records[-1])
    assert spool.size <= 4096 and spool.dropped == 0
    spool.close()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_every_record_is_sent_or_counted_as_dropped(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    folder, rng = tmp_path_factory.mktemp("spool"), random.Random(seed)
    spool = Spool(folder, max_bytes=16 << 10)
    added = sent = reported = 0
    for _ in range(rng.randrange(50, 200)):
        match rng.randrange(10):
            case 0:
                spool.close()
                spool = Spool(folder, max_bytes=16 << 10)
            case 1 | 2:
                for record in spool.peek(rng.randrange(1, 20)):
                    spool.acknowledge(record)
                    sent += record.weight
            case 3:
                if records := spool.peek(1):
                    spool.give_up(records[0])
            case _:
                weight, carried = rng.randrange(1, 50), spool.dropped
                spool.append(rng.randbytes(rng.randrange(1, 600)), weight=weight, reports_dropped=carried)
                added += weight
                reported += carried
        assert spool.size <= 16 << 10
    waiting = sum(record.weight for record in spool.peek(10_000))
    # A record that reports drops weighs what it reports too; what is dropped again has been counted before.
    assert added + reported == sent + waiting + reported_and_open(spool)
    spool.close()


def reported_and_open(spool: Spool) -> int:
    """All that was ever counted as dropped."""
    return spool._dropped


def test_a_torn_tail_at_every_byte_loses_only_the_last_record(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "whole", max_bytes=1 << 20)
    for number in range(3):
        spool.append(b"payload %d" % number)
    spool.close()
    (segment,) = segments(tmp_path / "whole")
    whole = segment.read_bytes()
    last = len(whole) - (len(whole) // 3)
    for end in range(last, len(whole)):
        folder = tmp_path / str(end)
        shutil.copytree(tmp_path / "whole", folder)
        segments(folder)[0].write_bytes(whole[:end])
        again = Spool(folder, max_bytes=1 << 20)
        assert payloads(again) == [b"payload 0", b"payload 1"]
        again.append(b"after")
        assert payloads(again) == [b"payload 0", b"payload 1", b"after"]
        again.close()


def test_a_flipped_bit_is_never_sent(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "whole", max_bytes=1 << 20)
    for number in range(2):
        spool.append(b"payload %d" % number, weight=7)
    spool.close()
    whole = segments(tmp_path / "whole")[0].read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        segments(tmp_path / "whole")[0].write_bytes(bytes(damaged))
        again = Spool(tmp_path / "whole", max_bytes=1 << 20)
        assert set(payloads(again)) <= {b"payload 0", b"payload 1"} and len(payloads(again)) < 2
        again.close()


def test_processes_write_to_parts_of_their_own_and_inherit_the_dead_ones(tmp_path: Path) -> None:
    first, second = Spool(tmp_path, max_bytes=1 << 20), Spool(tmp_path, max_bytes=1 << 20)
    first.append(b"from the first")
    second.append(b"from the second")
    assert payloads(first) == [b"from the first"] and payloads(second) == [b"from the second"]
    first.close()
    second.close()
    third = Spool(tmp_path, max_bytes=1 << 20)
    assert sorted(payloads(third)) == [b"from the first", b"from the second"]
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
    third.close()


def test_a_closed_buffer_takes_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=1 << 20)
    spool.close()
    with pytest.raises(Closed):
        spool.append(b"late")
    with pytest.raises(ValueError, match="does not fit"):
        Spool(tmp_path, max_bytes=5000).append(bytes(6000))


WRITER = """
import sys
from pathlib import Path
from latebind.device.spool import Spool
spool = Spool(Path(sys.argv[1]), max_bytes=1 << 20)
for number in range(100000):
    spool.append(b"%d" % number)
    print(number, flush=True)
"""


def test_what_was_appended_before_a_kill_is_there(tmp_path: Path) -> None:
    for round_number in range(4):
        folder = tmp_path / str(round_number)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.02 * round_number)
        writer.send_signal(signal.SIGKILL)
        last = int((writer.communicate()[0].split() or [b"0"])[-1])
        spool = Spool(folder, max_bytes=1 << 20)
        found = [int(payload) for payload in payloads(spool)]
        assert found == list(range(len(found))) and len(found) >= last + 1
        spool.close()
