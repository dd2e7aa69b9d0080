"""Run by gdb: stops a program at some calls of malloc and prints who called it.

From the environment: STACKS_SAMPLES (how many), STACKS_SKIP (calls between two of them). Each is a line
`sample` with a `file+0xoffset` for each return address, innermost first. Frames that gdb shows and that have no
return address of their own, of inlined functions and of functions left by a jump, are left out.
"""

import os

import gdb


def executable_maps(pid):
    found = []
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and "x" in fields[1]:
                start, end = (int(address, 16) for address in fields[0].split("-"))
                found.append((start, end, int(fields[2], 16), fields[5].strip()))
    return found


def place(maps, address):
    for start, end, offset, path in maps:
        if start <= address < end:
            return f"{os.path.basename(path)}+{address - start + offset:#x}"
    return f"?+{address:#x}"


def callers():
    maps = executable_maps(gdb.selected_inferior().pid)
    frame, places = gdb.newest_frame(), []
    while frame is not None:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            places.append(place(maps, frame.pc()))
        frame = frame.older()
    return places


def main():
    for setting in ("pagination off", "confirm off", "startup-with-shell off", "breakpoint pending on",
                    "backtrace past-main on", "backtrace past-entry off", "backtrace limit unlimited"):
        gdb.execute(f"set {setting}")
    for variable in ("LINES", "COLUMNS"):
        gdb.execute(f"unset environment {variable}")
    stop = gdb.Breakpoint("malloc")
    gdb.execute("run", to_string=True)
    left = int(os.environ["STACKS_SAMPLES"])
    while left and gdb.selected_inferior().pid:
        places = callers()
        # The loader has a malloc of its own, for itself.
        if places[0].startswith("libc"):
            print("sample", *places[1:], flush=True)
            left -= 1
        stop.ignore_count = int(os.environ["STACKS_SKIP"])
        gdb.execute("continue", to_string=True)
    if gdb.selected_inferior().pid:
        gdb.execute("kill")


main()
