//! The virtual hardware of the first machine in a descriptor, by the names that image services give it.

use super::{units, xml::Element};
use crate::model::Properties;

/// CIM resource types (the `ResourceType` of `CIM_ResourceAllocationSettingData`).
const PROCESSOR: &str = "3";
const MEMORY: &str = "4";
const IDE: &str = "5";
const SCSI: &str = "6";
const ETHERNET: &str = "10";
const DISK: &str = "17";
const OTHER_STORAGE: &str = "20";

/// Longest value of a property, in characters.
const MAX_VALUE: usize = 255;

/// What is known of the machine.
#[derive(Debug, Default)]
pub(super) struct Hardware {
    /// In the order in which they stand.
    items: Vec<Item>,
    os_id: Option<String>,
    os_type: Option<&'static str>,
    firmware: Option<&'static str>,
    secure_boot: Option<bool>,
}

#[derive(Debug, Default)]
struct Item {
    kind: String,
    subtype: String,
    id: String,
    parent: Option<String>,
    address: u64,
    on_parent: u64,
    resource: Option<String>,
    quantity: Option<u64>,
    units: Option<String>,
}

impl Hardware {
    /// Reads a `VirtualSystem`.
    pub fn read(system: &Element) -> Self {
        let section = system.first("VirtualHardwareSection");
        let items = section.into_iter().flat_map(|section| &section.children);
        let items = items.filter(|item| matches!(item.name.as_str(), "Item" | "StorageItem" | "EthernetPortItem"));
        let os = system.first("OperatingSystemSection");
        Self {
            items: items.map(read_item).collect(),
            os_id: os.and_then(|os| os.attribute("id")).map(shorten),
            os_type: os.and_then(os_type),
            firmware: firmware(system, section),
            secure_boot: section.and_then(|s| config(s, "efiSecureBootEnabled")).map(|value| value == "true"),
        }
    }

    /// Ids of the disks, the one that boots first.
    pub fn disks(&self) -> impl Iterator<Item = &str> {
        let mut disks: Vec<_> = self.items.iter().filter(|item| item.kind == DISK).collect();
        // Sorting is stable, so what is equal stays in the descriptor's order.
        disks.sort_by_key(|disk| {
            let controller = self.controller(disk);
            (controller.map_or(0, |(_, item)| item.address), controller.map_or(0, |(n, _)| n), disk.on_parent)
        });
        disks.into_iter().filter_map(Item::disk_id)
    }

    /// The controller of a disk, and its place in the descriptor.
    fn controller(&self, disk: &Item) -> Option<(usize, &Item)> {
        let parent = disk.parent.as_ref()?;
        self.items.iter().enumerate().find(|(_, item)| item.id == *parent)
    }

    /// What is known, with the bus of the disk of this id.
    pub fn properties(&self, disk: &str) -> Properties {
        let of = |kind: &'static str| self.items.iter().filter(move |item| item.kind == kind);
        let memory = of(MEMORY).find_map(Item::bytes).map(|bytes| bytes.div_ceil(1 << 20).to_string());
        let nics = of(ETHERNET).count();
        let disk = self.items.iter().find(|item| item.disk_id() == Some(disk));
        let controller = disk.and_then(|disk| self.controller(disk)).map(|(_, controller)| controller);
        let known = [
            ("ovf_cpus", of(PROCESSOR).find_map(|item| item.quantity).map(|cpus| cpus.to_string())),
            ("ovf_memory_mb", memory),
            ("ovf_nics", (nics > 0).then(|| nics.to_string())),
            ("ovf_os_id", self.os_id.clone()),
            ("os_type", self.os_type.map(str::to_owned)),
            ("hw_firmware_type", self.firmware.map(str::to_owned)),
            ("os_secure_boot", self.secure_boot.filter(|on| *on).map(|_| "required".to_owned())),
            ("hw_disk_bus", controller.and_then(bus).map(str::to_owned)),
            ("hw_scsi_model", controller.filter(|c| c.kind == SCSI).and_then(scsi_model).map(str::to_owned)),
            ("hw_vif_model", of(ETHERNET).find_map(vif_model).map(str::to_owned)),
        ];
        known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

impl Item {
    fn bytes(&self) -> Option<u64> {
        // Memory without units is in MiB in the descriptors that leave them out.
        units::bytes(self.quantity?, Some(self.units.as_deref().unwrap_or("MegaBytes")))
    }

    /// The disk that a `HostResource` such as `ovf:/disk/vmdisk1` means.
    fn disk_id(&self) -> Option<&str> {
        let resource = self.resource.as_deref()?;
        resource.strip_prefix("ovf:").unwrap_or(resource).strip_prefix("/disk/")
    }
}

fn read_item(item: &Element) -> Item {
    let number = |name: &str| item.text_of(name).and_then(|text| text.parse().ok());
    let text = |name: &str| item.text_of(name).map(str::to_owned);
    Item {
        kind: text("ResourceType").unwrap_or_default(),
        subtype: text("ResourceSubType").unwrap_or_default().to_ascii_lowercase(),
        // `InstanceId` in version 0.9.
        id: text("InstanceID").or_else(|| text("InstanceId")).unwrap_or_default(),
        parent: text("Parent"),
        address: number("Address").unwrap_or(0),
        on_parent: number("AddressOnParent").unwrap_or(0),
        resource: text("HostResource"),
        quantity: number("VirtualQuantity"),
        units: text("AllocationUnits"),
    }
}

fn bus(controller: &Item) -> Option<&'static str> {
    match controller.kind.as_str() {
        IDE => Some("ide"),
        SCSI => Some("scsi"),
        OTHER_STORAGE if controller.subtype.contains("nvme") => Some("nvme"),
        OTHER_STORAGE if controller.subtype.contains("virtio") => Some("virtio"),
        OTHER_STORAGE => Some("sata"),
        _ => None,
    }
}

fn scsi_model(controller: &Item) -> Option<&'static str> {
    Some(match controller.subtype.as_str() {
        "lsilogic" => "lsilogic",
        "lsilogicsas" => "lsisas1068",
        "buslogic" => "buslogic",
        "virtualscsi" => "vmpvscsi",
        "virtio-scsi" | "virtioscsi" => "virtio-scsi",
        _ => return None,
    })
}

fn vif_model(nic: &Item) -> Option<&'static str> {
    Some(match nic.subtype.as_str() {
        "e1000" => "e1000",
        "e1000e" => "e1000e",
        "vmxnet3" => "vmxnet3",
        "pcnet32" => "pcnet",
        "virtio" => "virtio",
        _ => return None,
    })
}

/// VMware says it in `vmw:Config`, VirtualBox in its own description of the machine.
fn firmware(system: &Element, section: Option<&Element>) -> Option<&'static str> {
    let vmware = section.and_then(|section| config(section, "firmware")).map(str::to_owned);
    let machine = system.first("Machine").and_then(|machine| machine.find("Firmware"));
    let said = vmware.or_else(|| machine?.attribute("type").map(str::to_owned))?.to_ascii_lowercase();
    match said.as_str() {
        "bios" => Some("bios"),
        efi if efi.starts_with("efi") || efi == "uefi" => Some("uefi"),
        _ => None,
    }
}

/// The value of a `Config` whose key is `key`, or ends with it after a dot.
fn config<'a>(section: &'a Element, key: &str) -> Option<&'a str> {
    let is = |found: &str| found == key || found.rsplit('.').next() == Some(key);
    section.all("Config").find(|config| config.attribute("key").is_some_and(is))?.attribute("value")
}

/// By the names in the descriptor; ids say it less reliably, because exporters write `other` when in doubt.
fn os_type(os: &Element) -> Option<&'static str> {
    const LINUX: [&str; 14] = [
        "linux", "ubuntu", "debian", "centos", "rhel", "redhat", "red hat", "fedora", "suse", "sles", "photon", "alma",
        "rocky", "gentoo",
    ];
    let texts = [os.attribute("osType"), os.text_of("Description"), os.text_of("OSType")];
    let said = texts.into_iter().flatten().collect::<Vec<_>>().join(" ").to_ascii_lowercase();
    if said.contains("windows") {
        return Some("windows");
    }
    // CIM_OperatingSystem.OSType: 36 is Linux, 58 and 67 to 78 are Windows.
    let id = os.attribute("id").and_then(|id| id.parse::<u32>().ok());
    if LINUX.iter().any(|name| said.contains(name)) || matches!(id, Some(36 | 79..=83 | 93..=101 | 106..=108)) {
        return Some("linux");
    }
    matches!(id, Some(58 | 67 | 69..=74 | 76..=77 | 103 | 105)).then_some("windows")
}

fn shorten(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_VALUE).collect()
}
