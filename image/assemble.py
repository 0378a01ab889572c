"""Copies what a list names out of the unpacked Debian packages into a new tree: nothing gets into the image that no list names.

    assemble.py LIST PACKAGES TARGET [OVERLAY...]

A line of LIST is one of
    path              a file, link or folder (a folder as a whole), wildcards allowed, relative to the root; its shared libraries come along
    module NAME       a kernel module, unpacked, with those that it depends on
    link PATH TARGET  a symbolic link
    folder PATH       an empty folder
OVERLAYs are copied over it at last. Every file gets mode 0644 or 0755: no setuid bit survives. Runs in the tools tree, as root.
"""

import glob
import lzma
import os
import shutil
import struct
import subprocess
import sys

LIBRARIES = ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd", "usr/lib", "usr/lib64"]


def main():
    listed, packages, target, *overlays = sys.argv[1:]
    tree = Tree(packages, target)
    with open(listed, encoding="utf-8") as lines:
        for line in lines:
            words = line.split("#")[0].split()
            if words:
                tree.take(words)
    tree.finish_modules()
    for overlay in overlays:
        tree.overlay(overlay)


class Tree:
    def __init__(self, packages, target):
        self.packages = packages
        self.target = target
        self.modules = []
        self.done = set()
        for name in ["bin", "sbin", "lib", "lib64"]:
            os.makedirs(f"{target}/usr/{name}", exist_ok=True)
            os.symlink(f"usr/{name}", f"{target}/{name}")

    def take(self, words):
        match words:
            case ["module", name]:
                self.modules.append(name)
            case ["link", path, to]:
                self.parent(path)
                os.symlink(to, f"{self.target}/{path}")
            case ["folder", path]:
                os.makedirs(f"{self.target}/{path}", exist_ok=True)
            case [pattern]:
                found = sorted(glob.glob(pattern, root_dir=self.packages))
                if not found:
                    sys.exit(f"assemble.py: no package has {pattern}")
                for path in found:
                    self.copy(path)
            case _:
                sys.exit(f"assemble.py: what is {' '.join(words)}?")

    def parent(self, path):
        os.makedirs(os.path.dirname(f"{self.target}/{path}"), exist_ok=True)

    def copy(self, path):
        """One path out of the packages; of a link also what it leads to."""
        path = os.path.normpath(path)
        for short in ("bin", "sbin", "lib", "lib64"):
            if path.startswith(short + "/"):
                path = "usr/" + path
        if path in self.done:
            return
        self.done.add(path)
        source, goal = f"{self.packages}/{path}", f"{self.target}/{path}"
        self.parent(path)
        if os.path.islink(source):
            to = os.readlink(source)
            if not os.path.lexists(goal):
                os.symlink(to, goal)
            beyond = to.lstrip("/") if to.startswith("/") else os.path.join(os.path.dirname(path), to)
            if os.path.lexists(f"{self.packages}/{os.path.normpath(beyond)}"):
                self.copy(beyond)
        elif os.path.isdir(source):
            os.makedirs(goal, exist_ok=True)
            for name in sorted(os.listdir(source)):
                self.copy(f"{path}/{name}")
        else:
            place(source, goal)
            for library in needed(source):
                # The loader is named with its path, libraries are looked for.
                self.copy(library.lstrip("/") if "/" in library else self.library(library, path))

    def library(self, name, wanted_by):
        for folder in LIBRARIES:
            if os.path.lexists(f"{self.packages}/{folder}/{name}"):
                return f"{folder}/{name}"
        sys.exit(f"assemble.py: {wanted_by} needs {name}, which no package has")

    def finish_modules(self):
        """The modules, and the index by which they are found."""
        if not self.modules:
            return
        (release,) = os.listdir(f"{self.packages}/usr/lib/modules")
        folder = f"usr/lib/modules/{release}"
        depends = {}
        subprocess.run(["depmod", "-b", self.packages, release], check=True)
        with open(f"{self.packages}/{folder}/modules.dep", encoding="utf-8") as lines:
            for line in lines:
                path, _, rest = line.partition(":")
                depends[path] = rest.split()
        names = {os.path.basename(path).split(".")[0].replace("-", "_"): path for path in depends}
        with open(f"{self.packages}/{folder}/modules.builtin", encoding="utf-8") as lines:
            built_in = {os.path.basename(line.strip()).split(".")[0].replace("-", "_") for line in lines}
        wanted = []
        for name in self.modules:
            name = name.replace("-", "_")
            if name in names:
                wanted.append(names[name])
            elif name not in built_in:
                sys.exit(f"assemble.py: the kernel has no module {name}")
        taken = set()
        while wanted:
            path = wanted.pop()
            if path not in taken:
                taken.add(path)
                wanted += depends[path]
        for path in sorted(taken):
            self.parent(f"{folder}/{path}")
            with open(f"{self.packages}/{folder}/{path}", "rb") as packed:
                data = packed.read()
            if path.endswith(".xz"):  # the kernel would unpack it slowly; the file system packs it anyway
                path, data = path.removesuffix(".xz"), lzma.decompress(data)
            with open(f"{self.target}/{folder}/{path}", "wb") as module:
                module.write(data)
        for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"]:
            place(f"{self.packages}/{folder}/{name}", f"{self.target}/{folder}/{name}")
        subprocess.run(["depmod", "-b", self.target, release], check=True)
        for name in os.listdir(f"{self.target}/{folder}"):
            # Only the binary indexes are read.
            if name.startswith("modules.") and not name.endswith(".bin"):
                os.unlink(f"{self.target}/{folder}/{name}")

    def overlay(self, overlay):
        for folder, folders, files in os.walk(overlay):
            inside = os.path.relpath(folder, overlay)
            for name in folders + files:
                source, path = f"{folder}/{name}", os.path.normpath(f"{inside}/{name}")
                goal = f"{self.target}/{path}"
                if os.path.islink(source):
                    self.parent(path)
                    os.symlink(os.readlink(source), goal)
                elif os.path.isdir(source):
                    os.makedirs(goal, exist_ok=True)
                else:
                    place(source, goal)


def place(source, goal):
    if os.path.lexists(goal):
        os.unlink(goal)
    shutil.copyfile(source, goal)
    os.chmod(goal, 0o755 if os.stat(source).st_mode & 0o100 else 0o644)


def needed(path):
    """The DT_NEEDED entries of a 64-bit ELF file, and its interpreter."""
    with open(path, "rb") as file:
        data = file.read() if file.read(5) == b"\x7fELF\x02" else b""
        if data == b"":
            return []
        file.seek(0)
        data = file.read()
    offset, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQQQ", data, offset + size * i) for i in range(count)]
    found, strings, entries = [], None, []
    for kind, _, at, _, _, length, _, _ in segments:
        if kind == 3:
            found.append(data[at : at + length - 1].decode())
        elif kind == 2:
            entries = [struct.unpack_from("<QQ", data, at + 16 * i) for i in range(length // 16)]
    for tag, value in entries:
        if tag == 5:
            for kind, _, at, address, _, length, _, _ in segments:
                if kind == 1 and address <= value < address + length:
                    strings = at + value - address
    for tag, value in entries:
        if tag == 1:
            end = data.index(b"\0", strings + value)
            found.append(data[strings + value : end].decode())
    return found


main()
