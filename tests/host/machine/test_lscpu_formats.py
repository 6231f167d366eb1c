"""What people copy out of a terminal: every format of lscpu, with prompts, fences, quotation marks, UTF-16."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from launcher.core.machine.topology import Machine
from launcher.errors import UsageError
from launcher.host.machine.machine_file import read_machine_file
from tests.machines import each_recorded, recorded, truth

P = """\
# CPU,Core,Socket,Node,,L1d,L1i,L2,L3
0,0,0,0,,0,0,0,0
1,1,1,1,,1,1,1,1
2,0,0,0,,0,0,0,0
3,1,1,1,,1,1,1,1
"""
E = """\
CPU NODE SOCKET CORE L1d:L1i:L2:L3 ONLINE    MAXMHZ   MINMHZ       MHZ
  0    0      0    0 0:0:0:0          yes 3700.0000 800.0000 2600.0000
  1    1      1    1 1:1:1:1          yes 3700.0000 800.0000 2600.0000
  2    0      0    0 0:0:0:0          yes 3700.0000 800.0000 2600.0000
  3    1      1    1 1:1:1:1          yes 3700.0000 800.0000 2600.0000
"""
SUMMARY = """\
Architecture:                    x86_64
CPU(s):                          4
On-line CPU(s) list:             0-3
Vendor ID:                       GenuineIntel
Model name:                      Intel(R) Xeon(R) Platinum 8275CL CPU @ 3.00GHz
Thread(s) per core:              2
Core(s) per socket:              1
Socket(s):                       2
Flags:                           fma avx avx2 avx512f avx512_vnni
L3 cache:                        71.5 MiB (2 instances)
NUMA node(s):                    2
NUMA node0 CPU(s):               0,2
NUMA node1 CPU(s):               1,3
Vulnerability Mds:               Not affected
"""
CORES = [((0, 2), 0, 0, 0), ((1, 3), 1, 1, 1)]


def read(folder: Path, content: str | bytes) -> Machine:
    file = folder / "pasted.txt"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_machine_file(file)


def cores(machine: Machine) -> list[tuple[tuple[int, ...], int | None, int | None, int | None]]:
    return [(core.cpus, core.package, core.node, core.l3) for core in machine.cores]


def quoted(text: str) -> str:
    return "".join(f"> {line}\n" for line in text.splitlines())


@pytest.mark.parametrize("text", [P, E, SUMMARY], ids=["-p", "-e", "summary"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: text,
        lambda text: f"user@host:~$ lscpu -p\n{text}user@host:~$ \n",
        lambda text: f"[root@host ~]# LC_ALL=C /usr/bin/lscpu -e\n{text}[root@host ~]# exit\n",
        lambda text: f"$ sudo lscpu\n{text}$\n",
        lambda text: f"```console\n{text}```\n",
        lambda text: f"~~~\n{text}~~~",
        quoted,
        lambda text: quoted(quoted(text)),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.encode("utf-16"),
        lambda text: ("\ufeff" + text).encode("utf-16-be"),
        lambda text: text.encode("utf-16-le"),
        lambda text: ("\ufeff" + text).encode(),
        lambda text: "".join(f"    {line}\n" for line in text.splitlines()),
        lambda text: f"\x1b[32muser@host\x1b[0m:\x1b[34m~\x1b[0m$ lscpu\n\x1b[1m{text}\x1b[0m",
    ],
)
def test_a_copied_text_gives_the_machine(tmp_path: Path, text: str, wrap: object) -> None:
    assert callable(wrap)
    assert cores(read(tmp_path, wrap(text))) == CORES


def test_quotation_marks_around_cells_are_removed(tmp_path: Path) -> None:
    text = (
        P.splitlines()[0]
        + "\n"
        + "".join(",".join(f'"{cell}"' for cell in line.split(",")) + "\n" for line in P.splitlines()[1:])
    )
    assert cores(read(tmp_path, text)) == CORES


def test_a_summary_adds_the_processor_to_rows(tmp_path: Path) -> None:
    alone, both = read(tmp_path, SUMMARY), read(tmp_path, f"$ lscpu\n{SUMMARY}\n$ lscpu -p\n{P}")
    for machine in (alone, both):
        assert (machine.arch, machine.vendor) == ("x86_64", "GenuineIntel")
        assert machine.model == "Intel(R) Xeon(R) Platinum 8275CL CPU @ 3.00GHz"
        assert machine.isa == ("avx512_vnni", "avx512f", "avx2", "avx", "fma")
        assert cores(machine) == CORES
    assert both.warnings == ()


def test_a_summary_that_leaves_the_siblings_open_says_what_was_assumed(tmp_path: Path) -> None:
    text = "CPU(s): 8\nThread(s) per core: 2\nCore(s) per socket: 4\nSocket(s): 1\n"
    machine = read(tmp_path, f"Architecture: x86_64\n{text}")
    assert [core.cpus for core in machine.cores] == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert any("`lscpu -p` does" in warning and "cpus 0,4" in warning for warning in machine.warnings)
    machine = read(tmp_path, f"Architecture: ppc64le\n{text}")
    assert [core.cpus for core in machine.cores] == [(0, 1), (2, 3), (4, 5), (6, 7)]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "CPU(s): 24\nThread(s) per core: 2\nCore(s) per socket: 16\nSocket(s): 1\n",
            "16 cores per socket .* 12 cores",
        ),
        ("CPU(s): 7\nThread(s) per core: 2\nCore(s) per socket: 4\nSocket(s): 1\n", "7 online cpus and 2 threads"),
        ("CPU(s): 8\nSocket(s): 1\n", r"no line 'Thread\(s\) per core'"),
        ("CPU(s): many\nThread(s) per core: 1\n", "'CPU\\(s\\)' of lscpu is 'many'"),
        ("CPU(s): 4\nThread(s) per core: 1\nNUMA node0 CPU(s): 0-2\n", "cpus 3 in no node"),
        ("CPU(s): 4\nThread(s) per core: 1\nNUMA node0 CPU(s): 3-0\n", "ends before it starts"),
    ],
)
def test_a_summary_without_the_cores_is_refused_with_what_it_lacks(tmp_path: Path, lines: str, words: str) -> None:
    with pytest.raises(UsageError, match=rf"{words}.*lscpu -p"):
        read(tmp_path, lines)


def test_rows_of_offline_cpus_are_blank(tmp_path: Path) -> None:
    text = "# CPU,Core,Socket,Node\n0,0,0,0\n1,1,0,0\n4,0,0,0\n5,,,0\n"
    machine = read(tmp_path, text)
    assert machine.present == (0, 1, 4, 5)
    assert [core.cpus for core in machine.cores] == [(0, 4), (1,)]
    assert machine.nodes[0].cpus == (0, 1, 4)
    table = "CPU NODE SOCKET CORE ONLINE\n0 0 0 0 yes\n1 0 - - no\n2 0 0 1 yes\n"
    assert [core.cpus for core in read(tmp_path, table).cores] == [(0,), (2,)]
    document = '{"cpus": [{"cpu": 0, "core": 0, "online": true}, {"cpu": 1, "core": -, "online": false}]}'
    assert [core.cpus for core in read(tmp_path, document).cores] == [(0,)]


def kinds(machine: Machine) -> str:
    return "".join(core.kind[0] for core in machine.cores)


def test_efficiency_cores_are_recognized_by_their_clock_their_caches_or_their_threads(tmp_path: Path) -> None:
    by_clock = "# CPU,Core,Socket,MAXMHZ\n0,0,0,5200.0000\n1,1,0,5000.0000\n2,2,0,3900.0000\n3,3,0,3900.0000\n"
    assert kinds(read(tmp_path, by_clock)) == "ppee"
    header = "# CPU,Core,Socket,Node,,L1d,L1i,L2,L3\n"
    with_smt = header + "0,0,0,0,,0,0,0,0\n1,0,0,0,,0,0,0,0\n2,1,0,0,,1,1,1,0\n3,2,0,0,,2,2,1,0\n"
    assert kinds(read(tmp_path, with_smt)) == "pee"
    without_smt = header + "0,0,0,0,,0,0,0,0\n1,1,0,0,,1,1,1,0\n2,2,0,0,,2,2,2,0\n3,3,0,0,,3,3,2,\n"
    assert kinds(read(tmp_path, without_smt)) == "ppee"
    by_threads = "# CPU,Core,Socket,Node\n0,0,0,0\n1,0,0,0\n2,1,0,0\n3,1,0,0\n4,2,0,0\n5,3,0,0\n"
    assert kinds(read(tmp_path, by_threads)) == "ppee"


def test_offline_siblings_and_shared_caches_do_not_make_kinds(tmp_path: Path) -> None:
    offline = "# CPU,Core,Socket,Node\n0,0,0,0\n1,0,0,0\n2,1,0,0\n4,2,0,0\n"
    assert kinds(read(tmp_path, offline)) == "ppp"
    tiles = "# CPU,Core,Socket,Node,,L1d,L1i,L2\n" + "".join(f"{n},{n},0,0,,{n},{n},{n // 2}\n" for n in range(8))
    assert kinds(read(tmp_path, tiles)) == "p" * 8


@pytest.mark.skipif(shutil.which("lscpu") is None, reason="lscpu is not installed")
@each_recorded()
def test_every_format_of_a_recorded_machine_gives_the_cores_of_its_rows_or_is_refused(
    name: str, tmp_path: Path
) -> None:
    """The table and its JSON give the same cores as the rows; a summary gives them, names an assumption, or is
    refused."""
    found: dict[str, Machine | None] = {}
    for key, options in {"p": ["-p"], "e": ["-e"], "eJ": ["-e", "-J"], "summary": [], "J": ["-J"]}.items():
        command = ["lscpu", "-s", str(recorded(name)), *options]
        done = subprocess.run(command, capture_output=True, text=True, env={"LC_ALL": "C"}, timeout=100, check=False)
        try:
            found[key] = read(tmp_path, done.stdout)
        except UsageError:
            found[key] = None
    rows, summary = found["p"], found["summary"]
    assert (found["e"] is None, found["eJ"] is None) == (rows is None, rows is None)
    if rows is None or found["e"] is None or found["eJ"] is None:
        return
    assert cores(found["e"]) == cores(found["eJ"])
    assert [core.cpus for core in found["e"].cores] == [core.cpus for core in rows.cores] or any(
        "CORE alone" in warning for warning in rows.warnings + found["e"].warnings
    )
    assert (summary is None) == (found["J"] is None)
    if summary is not None:
        known = truth(name)
        online = set(known["kernel_online"])
        right = sorted(tuple(cpu for cpu in core if cpu in online) for core in known["kernel_cores"])
        assumed = any("usual numbers" in warning for warning in summary.warnings)
        assert assumed or [core.cpus for core in summary.cores] == right
