#!/usr/bin/env python3
"""Builds the container image of operator and agents, without a container engine.

Usage: build.py --binary amd64=target/release/vitrine [--binary arm64=…] --output vitrine.tar [--tag vitrine:0.1.0]

Writes an OCI archive (for `skopeo copy oci-archive:…`, `podman load`, `ctr images import`) and beside it, for each architecture, a list of
what is in it (SPDX). In the image are the program without its debug tables, the shared libraries that it and Ceph's librbd need, and
the certificates of the public authorities: no shell, no package manager, nothing setuid. It runs as user 65532 and writes nothing
outside of what is mounted.

The libraries are those of this machine's Debian release, from the archive that its apt is set up with. The same program and the same
packages give the same image, bit by bit. Needs apt and dpkg, and binutils for the program's architecture; no root. Python standard library only.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# With all they depend on. librbd is loaded while the program runs, and brings librados.
LIBRARIES = ["librbd1", "libc6", "libgcc-s1"]
CERTIFICATES = "ca-certificates"
USER = 65532
STRIP = {"amd64": "x86_64-linux-gnu-objcopy", "arm64": "aarch64-linux-gnu-objcopy"}
# Of a package only libraries are taken, and what its licence says.
KEPT = re.compile(r"(usr/)?lib(64)?/.+|usr/share/doc/[^/]+/copyright")
LEFT = re.compile(r".*/(gconv|systemd|udev|tmpfiles\.d|sysusers\.d|pkgconfig|cmake|locale|engines-3|ossl-modules|mime|init\.d)(/.*)?|.*\.(a|py)")
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))


def say(text):
    print(f"image: {text}", file=sys.stderr, flush=True)


def run(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True, **options).stdout


# Packages -------------------------------------------------------------------------------------------------------------------

class Packages:
    """Debian's packages of one architecture, by an apt with a state of its own that believes nothing is installed."""

    def __init__(self, folder, arch):
        self.folder, self.arch = folder, arch
        for name in ("state/lists/partial", "cache/archives/partial", "parts"):
            (folder / name).mkdir(parents=True)
        (folder / "status").touch()
        (folder / "sources.list").write_text(source_lines())
        self.apt("update", "-qq")

    def apt(self, *arguments):
        options = {
            "Dir::Etc::sourcelist": self.folder / "sources.list", "Dir::Etc::sourceparts": self.folder / "parts",
            "Dir::State": self.folder / "state", "Dir::State::status": self.folder / "status", "Dir::Cache": self.folder / "cache",
            "APT::Architecture": self.arch, "APT::Architectures": self.arch, "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "", "Acquire::Languages": "none", "Acquire::Retries": "3", "Debug::NoLocking": "true",
        }
        return run("apt-get", *[f"-o{name}={value}" for name, value in options.items()], *arguments, cwd=self.folder)

    def fetch(self):
        """The files of the libraries' packages with all that they depend on, and of the certificates' alone, by name."""
        self.apt("install", "-qq", "-y", "--download-only", *LIBRARIES)
        self.apt("download", "-qq", CERTIFICATES)
        found = [*(self.folder / "cache/archives").glob("*.deb"), *self.folder.glob("*.deb")]
        return sorted(found, key=lambda path: path.name)


def source_lines():
    """The machine's own sources of its release: a site's mirror, proxy or snapshot is respected, and no host is written down here."""
    release = dict(line.rstrip().split("=", 1) for line in open("/etc/os-release") if "=" in line)
    code = release.get("VERSION_CODENAME", "").strip('"')
    lines = set()
    targets = run("apt-get", "indextargets", "--no-release-info", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
    for suite, component, uri in (line.split() for line in targets.splitlines()):
        if component == "main" and suite in (code, f"{code}-security", f"{code}-updates"):
            lines.add(f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {suite} main\n")
    if not code or not lines:
        sys.exit("image: this machine's apt has no source of its Debian release; see /etc/apt")
    return "".join(sorted(lines))


def about(deb):
    names = ["Package", "Version", "Architecture", "Maintainer"]
    fields = run("dpkg-deb", "--field", deb, *names)
    return dict(line.split(": ", 1) for line in fields.splitlines() if ": " in line)


def unpack(debs, root, work):
    """Unpacks what is kept of the packages into `root`."""
    for deb in debs:
        whole = work / "package"
        run("dpkg-deb", "--extract", deb, whole)
        if deb.name.startswith(f"{CERTIFICATES}_"):
            bundle = b"".join(path.read_bytes() for path in sorted((whole / "usr/share/ca-certificates").rglob("*.crt")))
            (root / "etc/ssl/certs").mkdir(parents=True)
            (root / "etc/ssl/certs/ca-certificates.crt").write_bytes(bundle)
        for path in whole.rglob("*"):
            name = path.relative_to(whole)
            text = str(name)
            if (path.is_file() or path.is_symlink()) and KEPT.fullmatch(text) and not LEFT.fullmatch(text):
                target = root / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target, follow_symlinks=False)
        shutil.rmtree(whole)


def finish(root):
    """What is in no package."""
    for name in ("etc", "tmp", "var/lib/vitrine", "var/lib/vitrine-agent"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "etc/passwd").write_text(f"root:x:0:0:root:/:/\nvitrine:x:{USER}:{USER}:vitrine:/:/\n")
    (root / "etc/group").write_text(f"root:x:0:\nvitrine:x:{USER}:\n")
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")


# Layers ---------------------------------------------------------------------------------------------------------------------

def layer(root):
    """The folder as a tar that depends on nothing but names, modes and bytes, and the same packed."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            entry = tar.gettarinfo(path, str(path.relative_to(root)))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = EPOCH
            if entry.isdir():
                entry.mode = 0o1777 if entry.name == "tmp" else 0o755
            elif entry.isreg():
                entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            if not entry.isreg():
                tar.addfile(entry)
                continue
            if path.stat().st_nlink > 1:  # a link into a cache is no link in the image
                entry.type, entry.linkname, entry.size = tarfile.REGTYPE, "", path.stat().st_size
            with open(path, "rb") as file:
                tar.addfile(entry, file)
    return raw.getvalue(), gzip.compress(raw.getvalue(), 6, mtime=0)


class Layout:
    """An OCI layout in the making."""

    def __init__(self, folder):
        self.blobs = folder / "blobs/sha256"
        self.blobs.mkdir(parents=True)
        self.folder = folder

    def add(self, kind, data, **more):
        """Keeps a blob; gives its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        (self.blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data), **more}

    def add_image(self, arch, roots, labels):
        """Keeps an image of the layers; gives its descriptor."""
        layers, diffs = [], []
        for root in roots:
            raw, packed = layer(root)
            diffs.append("sha256:" + hashlib.sha256(raw).hexdigest())
            layers.append(self.add("layer.v1.tar+gzip", packed))
        config = {
            "architecture": arch, "os": "linux",
            "config": {"User": f"{USER}:{USER}", "Entrypoint": ["/usr/bin/vitrine"], "Env": ["PATH=/usr/bin"], "WorkingDir": "/",
                       "Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": diffs},
        }
        kept = self.add("config.v1+json", as_json(config))
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": kept, "layers": layers}
        return self.add("manifest.v1+json", as_json(manifest), platform={"architecture": arch, "os": "linux"})

    def close(self, images, tag, output):
        """Writes the archive."""
        named = {"org.opencontainers.image.ref.name": tag.rsplit(":", 1)[-1], "io.containerd.image.name": tag}
        if len(images) == 1:
            top = images[0]
        else:
            top = self.add("index.v1+json", as_json({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                                                     "manifests": images}))
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [{**top, "annotations": named}]}
        (self.folder / "index.json").write_bytes(as_json(index))
        (self.folder / "oci-layout").write_bytes(as_json({"imageLayoutVersion": "1.0.0"}))
        raw, _ = layer(self.folder)
        part = output.with_name(output.name + ".part")
        part.write_bytes(raw)
        part.rename(output)
        return top["digest"]


def as_json(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


# What is in it --------------------------------------------------------------------------------------------------------------

def crates():
    """The crates of Cargo.lock: name, version, checksum."""
    for block in (ROOT / "Cargo.lock").read_text().split("[[package]]")[1:]:
        fields = dict(re.findall(r'^(name|version|checksum) = "([^"]*)"$', block, re.MULTILINE))
        yield fields["name"], fields["version"], fields.get("checksum")


def bill(arch, debs, binary, tag):
    """An SPDX document, without a time of its own so that the same image has the same."""
    parts = []
    for fields in map(about, debs):
        purl = f"pkg:deb/debian/{fields['Package']}@{fields['Version'].replace('+', '%2B')}?arch={fields['Architecture']}"
        parts.append(part(f"deb-{fields['Package']}", fields["Package"], fields["Version"], purl))
    for name, version, checksum in crates():
        parts.append(part(f"crate-{name}-{version}", name, version, f"pkg:cargo/{name}@{version}", checksum))
    parts.append(part("program", "vitrine", tag.rsplit(":", 1)[-1], None, hashlib.sha256(binary.read_bytes()).hexdigest()))
    identity = hashlib.sha256(as_json(parts)).hexdigest()
    return as_json({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": f"{tag} for linux/{arch}",
        "documentNamespace": f"urn:sha256:{identity}",
        "creationInfo": {"created": "1970-01-01T00:00:00Z", "creators": ["Tool: vitrine-config-image-build"]},
        "packages": parts,
        "relationships": [{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-program"}],
    })


def part(identity, name, version, purl, checksum=None):
    made = {"SPDXID": "SPDXRef-" + re.sub(r"[^A-Za-z0-9.-]", "-", identity), "name": name, "versionInfo": version,
            "downloadLocation": "NOASSERTION", "filesAnalyzed": False}
    if purl:
        made["externalRefs"] = [{"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}]
    if checksum:
        made["checksums"] = [{"algorithm": "SHA256", "checksumValue": checksum}]
    return made


def build_one(arch, binary, layout, work, tag, output):
    say(f"{arch}: libraries")
    debs = Packages(work / "apt", arch).fetch()
    libraries, program = work / "libraries", work / "program"
    unpack(debs, libraries, work)
    finish(libraries)
    say(f"{arch}: the program")
    (program / "usr/bin").mkdir(parents=True)
    run(STRIP[arch], "--strip-all", binary, program / "usr/bin/vitrine")
    output.with_name(f"{output.stem}.{arch}.spdx.json").write_bytes(bill(arch, debs, program / "usr/bin/vitrine", tag))
    version = tag.rsplit(":", 1)[-1]
    labels = {"org.opencontainers.image.title": "vitrine", "org.opencontainers.image.version": version,
              "org.opencontainers.image.licenses": "Apache-2.0"}
    return layout.add_image(arch, [libraries, program], labels)


def version():
    return re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", action="append", required=True, metavar="ARCH=FILE")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    parser.add_argument("--tag", default=f"vitrine:{version()}")
    options = parser.parse_args()
    binaries = dict(text.split("=", 1) if "=" in text else parser.error(f"{text}: write ARCH=FILE") for text in options.binary)
    for arch, file in binaries.items():
        if arch not in STRIP or not Path(file).is_file():
            parser.error(f"{arch}={file}: a file for one of {', '.join(STRIP)} is needed")
    with tempfile.TemporaryDirectory(prefix="vitrine-image-") as work:
        layout = Layout(Path(work) / "layout")
        images = []
        for arch, file in sorted(binaries.items()):
            folder = Path(work) / arch
            folder.mkdir()
            images.append(build_one(arch, file, layout, folder, options.tag, options.output))
        digest = layout.close(images, options.tag, options.output)
    say(f"{options.output}: {options.output.stat().st_size >> 20} MiB")
    print(digest)


if __name__ == "__main__":
    main()
