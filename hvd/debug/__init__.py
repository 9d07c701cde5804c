"""The GDB stub of a virtual machine (GDB manual, appendix E "GDB Remote Serial Protocol").

    rsp.py        bytes to packets and back; no I/O, no machine
    registers.py  gdb's registers of i386 and x86-64, and the target descriptions that name them
    debugger.py   what a debugger does to a machine: stop, go on, step, breakpoints
    stub.py       gdb's packets, answered
    monitor.py    `monitor ...`

All but rsp.py runs in the vcpu thread. hvd.runner.debug owns the socket. Imported when the first debugger comes.
"""
