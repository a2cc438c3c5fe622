//! Disk formats, container formats and compressions, by the names glance uses.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A text that names no known format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a known {what}: use one of {known}")]
pub struct ParseFormatError {
    what: &'static str,
    found: String,
    known: String,
}

macro_rules! named {
    ($(#[$doc:meta])* $name:ident, $what:literal, { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in manifests, messages and on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.name()) }
        }

        impl FromStr for $name {
            type Err = ParseFormatError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|v| v.name() == text).ok_or_else(|| ParseFormatError {
                    what: $what,
                    found: text.to_owned(),
                    known: Self::ALL.iter().map(|v| v.name()).collect::<Vec<_>>().join(", "),
                })
            }
        }
    };
}

named!(
    /// How the guest's disk is laid out in a file (glance `disk_format`).
    DiskFormat, "disk format", {
        /// The guest's bytes as they are.
        Raw = "raw",
        /// An ISO 9660 or UDF file system, kept as raw bytes.
        Iso = "iso",
        /// QEMU copy-on-write, versions 2 and 3.
        Qcow2 = "qcow2",
        /// VMware.
        Vmdk = "vmdk",
        /// Virtual PC, Hyper-V and Azure.
        Vhd = "vhd",
        /// Hyper-V.
        Vhdx = "vhdx",
        /// VirtualBox.
        Vdi = "vdi",
        /// Parallels and Virtuozzo.
        Ploop = "ploop",
        /// Amazon machine image.
        Ami = "ami",
        /// Amazon ramdisk image.
        Ari = "ari",
        /// Amazon kernel image.
        Aki = "aki",
    }
);

named!(
    /// What the disk is wrapped in (glance `container_format`).
    ContainerFormat, "container format", {
        /// Nothing around it.
        Bare = "bare",
        /// A tar archive with an OVF descriptor.
        Ova = "ova",
        /// An OVF descriptor with its files.
        Ovf = "ovf",
        /// A docker image archive.
        Docker = "docker",
        /// Amazon machine image.
        Ami = "ami",
        /// Amazon ramdisk image.
        Ari = "ari",
        /// Amazon kernel image.
        Aki = "aki",
        /// One compressed file.
        Compressed = "compressed",
    }
);

named!(
    /// A variant of a disk format, by qemu-img's names.
    Subformat, "subformat", {
        /// vmdk: one sparse extent in one file.
        MonolithicSparse = "monolithicSparse",
        /// vmdk: one sparse extent of compressed grains, made to be read as a stream.
        StreamOptimized = "streamOptimized",
        /// vhd, vhdx: blocks are allocated when they are written.
        Dynamic = "dynamic",
        /// vhd, vhdx: everything is allocated.
        Fixed = "fixed",
        /// vdi: everything is allocated.
        Static = "static",
    }
);

named!(
    /// A compression of clusters inside an image.
    Compression, "compression", {
        /// Stored as they are.
        None = "none",
        /// Raw deflate (qcow2 compression type 0).
        Zlib = "zlib",
        /// Zstandard (qcow2 compression type 1).
        Zstd = "zstd",
    }
);
