"""What each kind of virtualisation is, what is said about it, and which figure of a comparison stands beside that. docs/kinds.md has more."""

from __future__ import annotations

from typing import Final, NamedTuple


class Measure(NamedTuple):
    """Of which figure: "ratio" of a workload to the reference; "crossings" of one operation; "beside": a workload's time here and in another
    place; "memory": at the most; "programs" or "nano": which of a group it runs. What agrees with a claim: claims.py."""

    what: str
    workload: str = ""
    place: str = ""


class Claim(NamedTuple):
    text: str
    source: str  # of SOURCES; "" = common knowledge
    measures: tuple[Measure, ...]
    good: bool


class Kind(NamedTuple):
    title: str
    what: str
    claims: tuple[Claim, ...]


SOURCES: Final = {
    "PG74": "Popek, Goldberg: Formal Requirements for Virtualizable Third Generation Architectures, CACM 1974",
    "RI00": "Robin, Irvine: Analysis of the Intel Pentium's Ability to Support a Secure Virtual Machine Monitor, USENIX Security 2000",
    "B03": "Barham et al.: Xen and the Art of Virtualization, SOSP 2003",
    "B05": "Bellard: QEMU, a Fast and Portable Dynamic Translator, USENIX ATC 2005",
    "AA06": "Adams, Agesen: A Comparison of Software and Hardware Techniques for x86 Virtualization, ASPLOS 2006",
    "S07": "Soltesz et al.: Container-based Operating System Virtualization, EuroSys 2007",
    "F15": "Felter et al.: An Updated Performance Comparison of Virtual Machines and Linux Containers, ISPASS 2015",
}
_COMPUTE, _CALL, _FAULT, _FORK, _SWITCH, _DISK = (
    Measure("ratio", name) for name in ("compute-1000", "getpid", "page-touch", "fork-exec", "ping-pong", "disk-64k")
)
_USER, _KERNEL = (Measure("ratio", name) for name in ("user-compute", "kernel-compute"))
_MEMORY = Measure("memory")
_EMULATION: Final = (
    Claim("Runs anything: no kernel has to be changed, no processor has to help", "B05", (Measure("programs"), Measure("nano")), True),
    Claim("What enters the hypervisor costs next to nothing extra, since guest and hypervisor are one program: no trap of the processor is taken",
          "AA06", (_CALL, Measure("beside", "cr-write", "trap")), True),
    Claim("Every instruction is translated: several times slower than native where a program computes, the kernel too", "B05",
          (_COMPUTE, _USER, _KERNEL, Measure("ratio", "copy-4k")), False),
)  # fmt: skip
# By the kind that the daemon says a backend is of.
KINDS: Final[dict[str, Kind]] = {
    "native": Kind(
        "Native", "No virtualisation at all: processes of the host. What everything else is compared with.", ()
    ),
    "emulation": Kind(
        "Emulation",
        "The processor itself is a program: it reads the guest's instructions, translates them into instructions of the host, block by block, "
        "and runs those. Registers, page tables and interrupts of the guest are variables of that program.",
        _EMULATION,
    ),
    "emulation (yardstick)": Kind(
        "Emulation by QEMU",
        "QEMU's translator (TCG), the best known emulator, running the same guests: a yardstick that is not part of hvd.",
        _EMULATION,
    ),
    "container-based": Kind(
        "Containers",
        "No machine is virtualised, but the view that processes have of the one kernel: its own process numbers, file systems, network, and limits. "
        "A container is a group of ordinary processes.",
        (
            Claim("As fast as native: the kernel that serves the container is the host's, and there is nothing in between", "F15",
                  (_COMPUTE, _CALL, _FORK, _DISK), True),
            Claim("Light: a container needs no memory for a kernel of its own", "S07", (_MEMORY,), True),
            Claim("One kernel for all: a container cannot bring its own, and who breaks the kernel breaks all of them",
                  "S07", (Measure("nano"),), False),
        ),
    ),
    "trap and emulate": Kind(
        "Trap and emulate",
        "The guest's kernel runs on the processor itself, but without its privilege. Whatever is privileged traps to the hypervisor, which "
        "does in its place what the processor would have done.",
        (
            Claim("All that is not privileged runs at the processor's speed, in the kernel as well", "PG74",
                  (_USER, _KERNEL, Measure("beside", "kernel-compute", "emulation")), True),
            Claim("Each privileged instruction costs a trap, thousands of cycles", "AA06",
                  (Measure("beside", "cli", "rewriting"), Measure("beside", "in", "rewriting"),
                   Measure("beside", "system-call", "rewriting")), False),
            Claim("It is wrong on x86: 17 sensitive instructions do not trap in user mode, so an unmodified kernel goes astray", "RI00",
                  (Measure("programs"),), False),
        ),
    ),
    "binary rewriting": Kind(
        "Binary rewriting",
        "As trap and emulate, but the code of the guest's kernel is translated before it runs: instructions that would trap, or that should "
        "trap and do not, become code that does the right thing. Programs of the guest run natively.",
        (
            Claim("Unmodified kernels run, without help of the processor", "AA06", (Measure("programs"), Measure("nano")), True),
            Claim("Programs run natively: computing costs nothing extra", "AA06",
                  (_COMPUTE, _USER, Measure("beside", "user-compute", "emulation")), True),
            Claim("A sensitive instruction that is rewritten costs a fraction of its trap", "AA06",
                  (Measure("beside", "cli", "trap"), Measure("beside", "in", "trap"), Measure("beside", "cr-write", "trap")), True),
            Claim("System calls, page faults and context switches are dear: each is several crossings, and the page tables are kept twice", "AA06",
                  (_CALL, Measure("crossings", "getpid"), _FAULT, _FORK, _SWITCH), False),
        ),
    ),
    "paravirtualisation": Kind(
        "Paravirtualisation",
        "The guest's kernel knows that it has no privilege: it is changed so that it asks the hypervisor, by hypercalls, for what it must not "
        "do itself.",
        (
            Claim("Cheaper than guessing what a kernel means: what takes many traps becomes one hypercall", "B03",
                  (Measure("beside", "pte-batch", "trap"), Measure("beside", "hypercall", "trap"), Measure("beside", "cli", "trap"),
                   Measure("beside", "system-call", "trap"), Measure("beside", "fork-exec", "rewriting")), True),
            Claim("Close to native where a program computes", "B03", (_COMPUTE, _USER, _KERNEL), True),
            Claim("The kernel has to be changed; page faults and new processes, which change page tables, stay the dearest", "B03",
                  (_CALL, Measure("crossings", "getpid"), _FAULT, _FORK), False),
        ),
    ),
    "hardware assisted": Kind(
        "Hardware assisted",
        "The processor has a mode of its own for guests: their kernel has its privilege there, and what the hypervisor asked for exits to it. "
        "KVM is such a one.",
        (
            Claim("Unmodified kernels, system calls at native speed: they do not leave the guest", "AA06", (_CALL, _COMPUTE), True),
            Claim("An exit is dear, so what exits often (devices, page tables without a second level) is slow",
                  "AA06", (_FAULT, _FORK, _DISK), False),
            Claim("Needs a processor that has it, and the right to use it", "", (Measure("programs"),), False),
        ),
    ),
}  # fmt: skip
# Why a kind cannot, beside what came of trying.
WHY: Final = {
    "trap and emulate": "an unmodified Linux uses instructions that show or change what is the kernel's, and on x86 they do not trap: it goes astray "
    "(`hvctl census GUEST` lists them)",
}
NO_KERNEL: Final = "it runs programs under the host's kernel, and no kernel of its own"
UNKNOWN: Final = Kind("", "", ())
