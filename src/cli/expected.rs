//! What a user says that an image is.

use clap::Args;
use vitrine_engine::model::{ContainerFormat, DiskFormat};

/// What is expected of a source. What is left out is found.
#[derive(Args, Debug)]
pub struct Expected {
    /// What it must be; something else is refused
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<DiskFormat>,
    /// What must be around it; docker keeps the files of a container image as an archive
    #[arg(long, value_name = "FORMAT")]
    pub container_format: Option<ContainerFormat>,
    /// The disk to take where the container holds several, by its file's name or its id [default: the one that boots]
    #[arg(long, value_name = "NAME")]
    pub container_disk: Option<String>,
}
