"""The verbs of hvctl: one table, one file per group of them.

A new verb is a function with @verb in the file of its group (its first argument is Settings) and a row here.
"""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    home: str  # module of this package, and the function in it
    help: str
    rpcs: tuple[str, ...] = ()  # of the API (proto/hvd/v1) that it calls
    aliases: tuple[str, ...] = ()


# A name of two words belongs to a group. Where its own row has a home, that verb takes what is no name of the group.
VERBS: dict[str, Verb] = {
    "backends": Verb("system:backends", "The kinds of virtualisation: what runs here, and why not", ("ListBackends",)),
    "doctor": Verb("system:doctor", "What is wrong here, and what would help", ("GetInfo", "ListBackends")),
    "version": Verb("system:version", "Versions of hvctl and, with --daemon, of the daemon", ("GetInfo",)),
    "run": Verb("run:run", "Make a guest, start it and attach to its console",
                ("FindBlobs", "UploadBlob", "CreateGuest", "StartGuest", "AttachConsole", "GetGuest", "DeleteGuest")),
    "create": Verb("create:create", "Make a guest, stopped", ("FindBlobs", "UploadBlob", "CreateGuest")),
    "start": Verb("lifecycle:start", "Start guests", ("StartGuest",)),
    "stop": Verb("lifecycle:stop", "Ask guests to end, then end them", ("StopGuest",)),
    "kill": Verb("lifecycle:kill", "End guests at once", ("KillGuest",)),
    "pause": Verb("lifecycle:pause", "Let guests stand still", ("PauseGuest",)),
    "resume": Verb("lifecycle:resume", "Let paused guests go on", ("ResumeGuest",)),
    "reset": Verb("lifecycle:reset", "Press the reset button", ("ResetGuest",)),
    "update": Verb("lifecycle:update", "Change a guest's labels and policies", ("GetGuest", "UpdateGuest")),
    "delete": Verb("lifecycle:delete", "Delete guests", ("DeleteGuest",), ("rm",)),
    "wait": Verb("lifecycle:wait", "Wait until guests end, or reach a state", ("WaitGuest",)),
    "snapshot": Verb("snapshots:snapshot", "Save a whole machine", ("SnapshotGuest",)),
    "restore": Verb("snapshots:restore", "Put a guest back to a snapshot", ("RestoreGuest",)),
    "clone": Verb("snapshots:clone", "Make a guest from another one", ("CloneGuest",)),
    "snapshots": Verb("", "What was saved of guests"),
    "snapshots list": Verb("snapshots:list_snapshots", "The snapshots there are", ("ListSnapshots",), ("ls",)),
    "snapshots delete": Verb("snapshots:delete", "Delete snapshots", ("DeleteSnapshot",), ("rm",)),
    "snapshots export": Verb("snapshots:export", "Write a snapshot to a file", ("ExportSnapshot",)),
    "snapshots import": Verb("snapshots:import_", "Take a snapshot from a file", ("ImportSnapshot",)),
    "list": Verb("listing:list_guests", "The guests there are", ("ListGuests", "WatchGuests"), ("ls", "ps")),
    "show": Verb("listing:show", "Everything about a guest", ("GetGuest",)),
    "top": Verb("live:top", "The busiest guests, live", ("WatchStats",)),
    "stats": Verb("live:stats", "Figures of guests, live", ("WatchStats",)),
    "events": Verb("live:events", "What happens to guests, as it happens", ("WatchGuests",)),
    "logs": Verb("console:logs", "What a guest wrote to its console", ("GetLogs",)),
    "console": Verb("console:console", "Attach to a guest's console", ("GetGuest", "AttachConsole")),
    "screen": Verb("screen:screen", "What stands on a guest's screen", ("GetScreen",)),
    "type": Verb("screen:type_", "Type on a guest's keyboard", ("TypeKeys",)),
    "exec": Verb("execution:exec_", "Run another program in a container", ("ExecGuest",)),
    "cp": Verb("copying:cp", "Copy files into a container, and out of it", ("CopyIn", "CopyOut")),
    "trace": Verb("trace:trace", "The crossings between guest and hypervisor, as they happen", ("StreamTrace",)),
    "trace summary": Verb("trace_summary:summary", "Where crossings come from, and what they cost",
                          ("SummarizeTrace", "StreamTrace", "ReadTrace")),
    "trace points": Verb("trace:points", "What can be traced", ("ListTracePoints",)),
    "trace start": Verb("trace_sessions:start", "Let the daemon write a trace to files", ("StartTrace",)),
    "trace list": Verb("trace_sessions:list_traces", "The sessions there are", ("ListTraces",), ("ls",)),
    "trace show": Verb("trace_sessions:show", "Everything about a session", ("GetTrace",)),
    "trace stop": Verb("trace_sessions:stop", "End sessions; their files stay", ("StopTrace",)),
    "trace delete": Verb("trace_sessions:delete", "Delete sessions with their files", ("DeleteTrace",), ("rm",)),
    "trace follow": Verb("trace_sessions:follow", "What a session has written, and what it writes", ("GetTrace", "ReadTrace")),
    "trace read": Verb("trace_sessions:read", "Show a trace file"),
    "mem": Verb("", "A guest's memory"),
    "mem read": Verb("memory:read", "Show memory as a hex dump", ("ReadMemory",)),
    "mem write": Verb("memory:write", "Write memory", ("WriteMemory",)),
    "mem dump": Verb("memory:dump", "Save memory to a file", ("GetMemoryMap", "ReadMemory")),
    "mem map": Verb("memory:map_", "The regions of guest-physical memory", ("GetMemoryMap",)),
    "mem translate": Verb("memory:translate", "Follow a guest-virtual address", ("TranslateAddress",)),
    "regs": Verb("memory:regs", "A virtual CPU's registers", ("GetRegisters",)),
    "census": Verb("census:census", "Instructions of a guest's kernel that cannot trap though they should", ("GetCensus",)),
    "gdb": Verb("gdb:gdb", "Debug a guest with gdb", ("GetGuest", "GetImage", "DownloadBlob", "Debug")),
    "metrics": Verb("system:metrics", "Prometheus metrics", ("GetMetrics",)),
    "compare": Verb("compare:compare", "What each kind of virtualisation costs: the same work under all of them",
                    ("ListBackends", "ListImages", "GetImage", "BuildImage", "FindBlobs", "UploadBlob", "DownloadBlob", "CreateImage",
                     "DeleteImage", "CreateGuest", "StartGuest", "GetGuest", "DeleteGuest", "AttachConsole", "ExecGuest", "GetLogs",
                     "SummarizeTrace", "StreamTrace", "WatchStats", "GetCensus")),
    "image": Verb("", "What guests start from"),
    "image list": Verb("images:list_images", "The images there are", ("ListImages",), ("ls",)),
    "image import": Verb("images:import_", "Make an image of a kernel, a disk, a CD-ROM or a root folder",
                         ("FindBlobs", "UploadBlob", "CreateImage")),
    "image build": Verb("images:build", "Build an image by one of the daemon's recipes", ("BuildImage",)),
    "image pull": Verb("images:pull", "Fetch an image for containers from a registry", ("PullImage",)),
    "image delete": Verb("images:delete", "Delete images", ("DeleteImage",), ("rm",)),
    "network": Verb("", "Bridges of the host that guests are plugged into"),
    "network create": Verb("networks:create", "Make a network", ("CreateNetwork",)),
    "network list": Verb("networks:list_networks", "The networks there are", ("ListNetworks",), ("ls",)),
    "network show": Verb("networks:show", "A network and the guests on it", ("GetNetwork",)),
    "network delete": Verb("networks:delete", "Delete networks", ("DeleteNetwork",), ("rm",)),
    "volume": Verb("", "Folders that containers mount, and that outlive them"),
    "volume create": Verb("volumes:create", "Make an empty volume", ("CreateVolume",)),
    "volume list": Verb("volumes:list_volumes", "The volumes there are", ("ListVolumes",), ("ls",)),
    "volume show": Verb("volumes:show", "A volume and the guests that name it", ("GetVolume",)),
    "volume delete": Verb("volumes:delete", "Delete volumes with what is in them", ("DeleteVolume",), ("rm",)),
    "completion": Verb("completion:completion", "A completion script for bash, zsh or fish"),
}  # fmt: skip
