use super::*;

const VMWARE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf">
 <References>
  <File ovf:href="data.vmdk" ovf:id="file2"/><File ovf:href="boot%20disk.vmdk" ovf:id="file1" ovf:compression="gzip"/>
 </References>
 <DiskSection><Info>disks</Info>
  <Disk ovf:capacity="20" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="data" ovf:fileRef="file2"/>
  <Disk ovf:capacity="4" ovf:capacityAllocationUnits="byte * 2^30" ovf:diskId="boot" ovf:fileRef="file1"/>
  <Disk ovf:capacity="4" ovf:diskId="empty"/>
 </DiskSection>
 <VirtualSystem ovf:id="vm">
  <OperatingSystemSection ovf:id="94" vmw:osType="ubuntu64Guest"><Info/></OperatingSystemSection>
  <VirtualHardwareSection>
   <Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>2</rasd:VirtualQuantity></Item>
   <Item><rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits><rasd:InstanceID>2</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>4096</rasd:VirtualQuantity></Item>
   <Item><rasd:Address>1</rasd:Address><rasd:InstanceID>3</rasd:InstanceID><rasd:ResourceType>20</rasd:ResourceType><rasd:ResourceSubType>vmware.sata.ahci</rasd:ResourceSubType></Item>
   <Item><rasd:Address>0</rasd:Address><rasd:InstanceID>4</rasd:InstanceID><rasd:ResourceType>6</rasd:ResourceType><rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType></Item>
   <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/data</rasd:HostResource><rasd:InstanceID>9</rasd:InstanceID><rasd:Parent>3</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
   <Item><rasd:AddressOnParent>1</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/boot</rasd:HostResource><rasd:InstanceID>10</rasd:InstanceID><rasd:Parent>4</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
   <Item><rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>ovf:/disk/empty</rasd:HostResource><rasd:InstanceID>11</rasd:InstanceID><rasd:Parent>4</rasd:Parent><rasd:ResourceType>17</rasd:ResourceType></Item>
   <Item><rasd:InstanceID>12</rasd:InstanceID><rasd:ResourceType>10</rasd:ResourceType><rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType></Item>
   <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
   <vmw:Config ovf:required="false" vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>
  </VirtualHardwareSection>
 </VirtualSystem>
</Envelope>"#;

fn rule(text: &str) -> (Rule, String) {
    let violation = Descriptor::parse(text.as_bytes()).unwrap_err();
    (violation.rule, violation.field)
}

#[test]
fn the_disk_that_boots_is_that_at_the_lowest_address_that_has_a_file() {
    let descriptor = Descriptor::parse(VMWARE.as_bytes()).unwrap();
    let disk = descriptor.choose(None).unwrap();
    assert_eq!((disk.href.as_str(), disk.gzip, disk.capacity), ("boot disk.vmdk", true, 4 << 30));
    for name in ["data", "data.vmdk"] {
        assert_eq!(descriptor.choose(Some(name)).unwrap().capacity, 20 << 30);
    }
    let error = descriptor.choose(Some("other")).unwrap_err();
    assert!(error.field == "containerDisk" && error.message.contains("data (data.vmdk), boot"), "{error}");
}

#[test]
fn the_machine_becomes_properties() {
    let descriptor = Descriptor::parse(VMWARE.as_bytes()).unwrap();
    let properties = descriptor.properties(descriptor.choose(None).unwrap());
    let expected = [
        ("hw_disk_bus", "scsi"),
        ("hw_firmware_type", "uefi"),
        ("hw_scsi_model", "vmpvscsi"),
        ("hw_vif_model", "vmxnet3"),
        ("os_secure_boot", "required"),
        ("os_type", "linux"),
        ("ovf_cpus", "2"),
        ("ovf_memory_mb", "4096"),
        ("ovf_nics", "1"),
        ("ovf_os_id", "94"),
    ];
    assert_eq!(properties, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
}

#[test]
fn what_is_not_read_is_refused() {
    let with = |from: &str, to: &str| {
        assert!(VMWARE.contains(from), "{from}");
        rule(&VMWARE.replacen(from, to, 1))
    };
    let field = |field: &str| field.to_owned();
    assert_eq!(
        with("<Envelope", "<!DOCTYPE x [<!ENTITY a 'b'>]><Envelope"),
        (Rule::InvalidField, field("ovf descriptor"))
    );
    assert_eq!(with("<Info>disks", "<Info>&file;"), (Rule::InvalidField, field("ovf descriptor")));
    assert_eq!(with("vmw:value=\"efi\"", "vmw:value=\"&file;\""), (Rule::InvalidField, field("ovf descriptor")));
    assert_eq!(with("</DiskSection>", ""), (Rule::InvalidField, field("ovf descriptor")));
    assert_eq!(with("href=\"data.vmdk\"", "href=\"../data.vmdk\""), (Rule::ExternalDataFile, field("href")));
    assert_eq!(with("href=\"data.vmdk\"", "href=\"http://x/data.vmdk\""), (Rule::ExternalDataFile, field("href")));
    assert_eq!(with("href=\"data.vmdk\"", "href=\"%2fetc/passwd\""), (Rule::ExternalDataFile, field("href")));
    assert_eq!(with("diskId=\"data\"", "diskId=\"data\" ovf:parentRef=\"x\""), (Rule::BackingFile, field("parentRef")));
    assert_eq!(with("id=\"file2\"", "id=\"file2\" ovf:chunkSize=\"1\""), (Rule::UnsupportedFormat, field("chunkSize")));
    assert_eq!(with("=\"gzip\"", "=\"bzip2\""), (Rule::UnsupportedFormat, field("compression")));
    assert_eq!(with("fileRef=\"file2\"", "fileRef=\"file3\""), (Rule::InvalidField, field("fileRef")));
    assert_eq!(with("capacity=\"20\"", "capacity=\"-1\""), (Rule::InvalidField, field("capacity")));
    assert_eq!(with("byte * 2^30", "byte * 2^63"), (Rule::InvalidField, field("capacity")));
    assert_eq!(rule("<a/>"), (Rule::InvalidField, field("ovf descriptor")));
    assert_eq!(rule(""), (Rule::InvalidField, field("ovf descriptor")));
}

#[test]
fn a_descriptor_is_bounded() {
    let deep = format!("{}{}", "<a>".repeat(40), "</a>".repeat(40));
    let wide = format!("<Envelope>{}</Envelope>", "<a/>".repeat(30_000));
    let many = format!("<Envelope {}/>", (0..100).map(|n| format!("a{n}='x'")).collect::<Vec<_>>().join(" "));
    for text in [deep, wide, many] {
        assert!(Descriptor::parse(text.as_bytes()).unwrap_err().message.contains("than any"));
    }
}
