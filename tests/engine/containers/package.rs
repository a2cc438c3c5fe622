//! OVF packages made with tar and qemu-img.

use std::{fmt::Write as _, fs, path::PathBuf, process::Command, sync::Arc};

use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};
use tokio_util::sync::CancellationToken;
use vitrine_engine::{
    error::Error,
    model::{Inspection, Limits, OutputFormat, Rule, Verdict},
    pipeline::{Import, Imported, InspectJob, inspect},
    store::memory::MemoryStore,
};
use vitrine_harness::qemu::qemu_img;

use crate::support::{Bytestream, job, memory, run};

/// A folder in which a package is put together.
pub struct Package {
    folder: tempfile::TempDir,
    /// What goes into the archive, in order.
    pub members: Vec<String>,
}

impl Package {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), members: Vec::new() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds a member.
    pub fn add(&mut self, name: &str, bytes: impl AsRef<[u8]>) -> &mut Self {
        fs::write(self.path(name), bytes).unwrap();
        self.members.push(name.to_owned());
        self
    }

    /// Adds `disk` as a qcow2 file.
    pub fn add_qcow2(&mut self, name: &str, disk: &[u8]) -> &mut Self {
        let raw = self.path("disk.raw.tmp");
        fs::write(&raw, disk).unwrap();
        let target = self.path(name);
        qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-c", raw.to_str().unwrap(), target.to_str().unwrap()])
            .unwrap();
        self.members.push(name.to_owned());
        self
    }

    /// Adds a manifest of all members so far.
    pub fn add_manifest(&mut self, algorithm: &str) -> &mut Self {
        let mut text = String::new();
        for name in &self.members {
            let bytes = fs::read(self.path(name)).unwrap();
            let digest = match algorithm {
                "SHA1" => hex::encode(Sha1::digest(&bytes)),
                "SHA256" => hex::encode(Sha256::digest(&bytes)),
                _ => hex::encode(Sha512::digest(&bytes)),
            };
            writeln!(text, "{algorithm}({name})= {digest}").unwrap();
        }
        self.add("vm.mf", text)
    }

    /// The archive, by GNU tar.
    pub fn tar(&self, options: &[&str]) -> Vec<u8> {
        let archive = self.path("archive.tar");
        let status = Command::new("tar")
            .current_dir(self.folder.path())
            .args(["--create", "--file"])
            .arg(&archive)
            .args(options)
            .args(&self.members)
            .status()
            .unwrap();
        assert!(status.success());
        fs::read(archive).unwrap()
    }
}

/// A descriptor with these disks: file, compression, capacity. They hang on one SCSI controller, the first at the highest address.
pub fn descriptor(disks: &[(&str, &str, usize)]) -> String {
    let (mut files, mut sections, mut items) = (String::new(), String::new(), String::new());
    for (n, (file, compression, capacity)) in disks.iter().enumerate() {
        let address = disks.len() - n;
        write!(files, r#"<File ovf:href="{file}" ovf:id="file{n}" {compression}/>"#).unwrap();
        write!(sections, r#"<Disk ovf:capacity="{capacity}" ovf:diskId="disk{n}" ovf:fileRef="file{n}"/>"#).unwrap();
        write!(
            items,
            "<Item><rasd:AddressOnParent>{address}</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/disk{n}</rasd:HostResource>\
             <rasd:InstanceID>1{n}</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>"
        )
        .unwrap();
    }
    format!(
        r#"<?xml version="1.0"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData">
<References>{files}</References><DiskSection><Info/>{sections}</DiskSection>
<VirtualSystem ovf:id="vm"><OperatingSystemSection ovf:id="96"><Info/><Description>Debian (64-bit)</Description></OperatingSystemSection>
<VirtualHardwareSection><Info/>
<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
<Item><rasd:Address>0</rasd:Address><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceSubType>lsilogic</rasd:ResourceSubType>
<rasd:ResourceType>6</rasd:ResourceType></Item>{items}
</VirtualHardwareSection></VirtualSystem></Envelope>"#
    )
}

/// How a source behaves.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    Ranges,
    Sized,
    Unsized,
}

pub const WAYS: [Way; 3] = [Way::Ranges, Way::Sized, Way::Unsized];

pub fn source(bytes: &[u8], way: Way) -> Bytestream {
    let mut source = Bytestream::new(bytes.to_vec());
    match way {
        Way::Ranges => source = source.ranged(),
        Way::Sized => {}
        Way::Unsized => source.sized = false,
    }
    source
}

/// What an inspection says.
pub async fn inspected(bytes: &[u8], way: Way, change: impl FnOnce(&mut InspectJob)) -> Inspection {
    let mut job = InspectJob {
        source: Arc::new(source(bytes, way)),
        disk_format: None,
        container_format: None,
        container_disk: None,
        limits: Limits::default(),
        scratch: std::env::temp_dir(),
    };
    change(&mut job);
    inspect(job, &CancellationToken::new()).await.unwrap()
}

/// What an import does, and the store it does it in.
pub async fn imported(
    bytes: &[u8],
    way: Way,
    change: impl FnOnce(&mut Import),
) -> (Result<Imported, Error>, Arc<MemoryStore>) {
    let store = memory();
    let mut job = job(source(bytes, way), vec![(store.clone(), OutputFormat::RAW)]);
    change(&mut job);
    (run(&job).await, store)
}

/// The rule and field by which import and inspection refuse `bytes`, whichever way they come. `seen` says whether inspection by range
/// sees it too.
pub async fn refusal(bytes: &[u8], seen: bool) -> (Rule, String) {
    let mut found = None;
    for way in WAYS {
        let (result, store) = imported(bytes, way, |_| {}).await;
        let error = result.unwrap_err();
        let violation = error.violation().unwrap_or_else(|| panic!("{way:?}: {error}")).clone();
        assert!(vitrine_engine::store::Store::list(store.as_ref()).await.unwrap().is_empty());
        let reason = (violation.rule, violation.field);
        assert_eq!(*found.get_or_insert(reason.clone()), reason, "{way:?}");
        let inspection = inspected(bytes, way, |_| {}).await;
        if seen || !matches!(way, Way::Ranges) {
            assert_eq!(inspection.verdict, Verdict::Refused, "{way:?}");
            assert!(
                inspection.reasons.iter().any(|v| (v.rule, v.field.clone()) == reason),
                "{way:?}: {:?}",
                inspection.reasons
            );
        } else {
            assert_eq!(inspection.verdict, Verdict::Accepted, "{way:?}: {:?}", inspection.reasons);
        }
    }
    found.unwrap()
}
